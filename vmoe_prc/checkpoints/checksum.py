"""Checksums of arrays on devices: storage that gives back other bits than it was given.

The checksum of an array is the sum of its bits, as unsigned integers, modulo 2^32. It does
not depend on how the array is spread over devices.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.runtime.trees import named_leaves

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksums(tree: Any) -> dict[str, int]:
    """Returns the checksum of each array by its name; the same in every process.

    Args:
      tree: Arrays of JAX or NumPy.
    """
    arrays = named_leaves(tree)
    meshes = {x.sharding.mesh for x in arrays.values() if _is_on_mesh(x)}
    sums = _compiled(replicated(meshes.pop()) if meshes else None)(arrays)
    return {name: int(value) for name, value in jax.device_get(sums).items()}


def changed_arrays(tree: Any, written: Mapping[str, int]) -> list[str]:
    """Returns the names of the arrays whose checksum is not the one that was written.

    Args:
      tree: Arrays of JAX or NumPy.
      written: Result of `checksums`; arrays that are not in it are not looked at.
    """
    return [name for name, value in checksums(tree).items() if written.get(name, value) != value]


def _is_on_mesh(x: Any) -> bool:
    return isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)


@functools.cache
def _compiled(sharding: NamedSharding | None) -> Any:
    return jax.jit(lambda arrays: jax.tree.map(_checksum, arrays), out_shardings=sharding)


def _checksum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])
    return jnp.sum(bits, dtype=jnp.uint32)
