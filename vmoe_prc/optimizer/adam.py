"""Adam's direction (Kingma and Ba, arXiv 1412.6980)."""

import dataclasses

import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import OPTIMIZERS
from vmoe_prc.optimizer.options import OptimizerOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamOptions(OptimizerOptions):
    """Options of `adam`."""

    b1: float = option(0.9, "Decay of the mean of the gradients.", minimum=0.0, maximum=1.0)
    b2: float = option(
        0.999, "Decay of the mean of the squared gradients.", minimum=0.0, maximum=1.0
    )
    eps: float = option(1e-8, "Added to the root of the mean square.", above=0.0)
    mu_dtype: str = option(
        "float32", "Dtype in which the mean is kept.", choices=("float32", "bfloat16")
    )


@OPTIMIZERS.register(options=AdamOptions)
def adam(options: AdamOptions) -> optax.GradientTransformation:
    """Scales gradients by Adam's rule."""
    return optax.scale_by_adam(options.b1, options.b2, options.eps, mu_dtype=options.mu_dtype)
