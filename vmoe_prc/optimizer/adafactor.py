"""Adafactor's direction with momentum, as V-MoE's largest models are trained.

Shazeer and Stern (arXiv 1804.04235), in the form of Zhai et al. (arXiv 2106.04560): the mean of
the squared gradients of a matrix is kept as its row and column means, and the momentum may be
bfloat16, so that the state of a parameter takes 2 bytes where Adam's takes 8.
"""

import dataclasses

import jax.numpy as jnp
import optax

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import OPTIMIZERS
from vmoe_prc.optimizer.options import OptimizerOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorOptions(OptimizerOptions):
    """Options of `adafactor`."""

    b1: float = option(0.9, "Decay of the momentum.", minimum=0.0, maximum=1.0)
    b2: float = option(
        0.999, "Largest decay of the mean of the squared gradients.", minimum=0.0, maximum=1.0
    )
    decay_exponent: float = option(
        0.8, "The decay at step t is 1 - t ** -decay_exponent, up to `b2`.", above=0.0
    )
    min_dim_size_to_factor: int = option(
        128,
        "Length that both of two axes need for their mean squares to be factored. It must exceed "
        "the number of experts; V-MoE's default is 32.",
        minimum=1,
    )
    mu_dtype: str = option(
        "bfloat16", "Dtype in which the momentum is kept.", choices=("float32", "bfloat16")
    )


@OPTIMIZERS.register(options=AdafactorOptions)
def adafactor(options: AdafactorOptions) -> optax.GradientTransformation:
    """Scales gradients by factored means of their squares, and adds momentum."""

    def decay(step, exponent):
        return jnp.minimum(1 - (step + 1.0) ** -exponent, options.b2)

    return optax.chain(
        # The factors of an expert's kernel (E, D, F) are (E, D) and (E, F): E is below the limit.
        optax.scale_by_factored_rms(
            decay_rate=options.decay_exponent,
            decay_rate_fn=decay,
            min_dim_size_to_factor=options.min_dim_size_to_factor,
        ),
        optax.ema(options.b1, debias=False, accumulator_dtype=options.mu_dtype),
    )
