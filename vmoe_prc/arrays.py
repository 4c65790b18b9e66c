"""The array types of our annotations: `Float[Array, "G S E"]` takes JAX and NumPy arrays."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

Array = jax.Array | np.ndarray

# An array field of a record. Tree functions put shapes, shardings or tracers there too.
Leaf = Any

# A number: Python's, NumPy's or JAX's, which inside of `jit` is a tracer.
Scalar = Shaped[Array, ""] | float

# An int, or a size that an exported program leaves open (`jax.export.symbolic_shape`).
Size = Any

__all__ = ["Array", "Bool", "Float", "Int", "Leaf", "Scalar", "Size", "UInt8"]
