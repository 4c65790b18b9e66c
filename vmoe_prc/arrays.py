"""The array types of our annotations: `Float[Array, "G S E"]` takes JAX and NumPy arrays."""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray

__all__ = ["Array", "Bool", "Float", "Int"]
