"""Sparse mixture-of-experts vision transformers with Pairwise Router Consistency."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmoe_prc.predict.model import open_model as open

__all__ = ["__version__", "open"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # `vmoe_prc.open` needs JAX, and importing the package must not wait for it.
    if name == "open":
        from vmoe_prc.predict.model import open_model

        return open_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
