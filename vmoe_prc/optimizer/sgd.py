"""Stochastic gradient descent, with or without momentum."""

import dataclasses

import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import OPTIMIZERS
from vmoe_prc.optimizer.options import OptimizerOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SgdOptions(OptimizerOptions):
    """Options of `sgd`."""

    momentum: float = option(
        0.0, "Decay of the sum of earlier gradients; 0 for none.", minimum=0.0, maximum=1.0
    )
    nesterov: bool = option(False, "Whether the momentum is Nesterov's.")
    accumulator_dtype: str = option(
        "float32", "Dtype in which the momentum is kept.", choices=("float32", "bfloat16")
    )


@OPTIMIZERS.register(options=SgdOptions)
def sgd(options: SgdOptions) -> optax.GradientTransformation:
    """Adds up gradients with momentum."""
    if not options.momentum:
        return optax.identity()
    return optax.trace(options.momentum, options.nesterov, options.accumulator_dtype)
