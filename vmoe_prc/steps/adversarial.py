"""The attack of V-MoE's study of adversarial training (arXiv 2210.10253)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float

Keys = dict[str, jax.Array]


def attack(
    objective: Callable[[jax.Array, Keys], jax.Array],
    images: Float[Array, "N H W C"],
    keys: Keys,
    *,
    max_epsilon: float,
    num_updates: int,
) -> Float[Array, "N H W C"]:
    """Moves images along the sign of the gradient of an objective.

    These are `num_updates` steps of max_epsilon / num_updates from the images themselves. Unlike
    in PGD (arXiv 1706.06083) nothing is projected: the steps reach no farther than `max_epsilon`,
    and pixels may leave the range of their values.

    Args:
      objective: Function of images and random keys, to be increased.
      images: (N, H, W, C).
      keys: Random keys by purpose; each step has its own.
      max_epsilon: Largest change of a pixel.
      num_updates: Steps.

    Returns:
      (N, H, W, C), a constant for differentiation.
    """
    size = max_epsilon / num_updates

    def step(i, attacked):
        of_step = {name: jax.random.fold_in(key, i) for name, key in keys.items()}
        return attacked + size * jnp.sign(jax.grad(objective)(attacked, of_step))

    attacked = jax.lax.fori_loop(0, num_updates, step, jax.lax.stop_gradient(images))
    return jax.lax.stop_gradient(attacked)
