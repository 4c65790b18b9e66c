"""Rows sorted by group in tiles, each of which belongs to one group."""

import flax.struct
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Int, Leaf, Size

# Rows of a tile: what a matrix unit takes without waste.
TILE = 128


@flax.struct.dataclass
class Tiles:
    """Assigns tiles to E groups; T tiles are enough for any sizes.

    Attributes:
      group: (T,) int32, group of each tile; E for a tile that is not in use.
      first: (E,) int32, first tile of each group.
      count: (E,) int32, number of tiles of each group.
    """

    group: Leaf
    first: Leaf
    count: Leaf

    @classmethod
    def create(cls, sizes: Int[Array, " E"], num_rows: Size) -> "Tiles":
        """Lays out groups one after the other.

        Args:
          sizes: (E,) int32, rows of each group.
          num_rows: The most rows that all groups have together.
        """
        count = (sizes + TILE - 1) // TILE
        ends = jnp.cumsum(count)
        tile = jnp.arange(num_tiles(num_rows, len(sizes)), dtype=sizes.dtype)
        group = jnp.sum(tile[:, None] >= ends, axis=1, dtype=sizes.dtype)
        return cls(group, ends - count, count)

    @property
    def in_use(self) -> jax.Array:
        """(T, 1, 1) bool, tiles that have a group."""
        return (self.group < len(self.count))[:, None, None]


def num_tiles(num_rows: Size, num_groups: int) -> Size:
    """Returns T, the tiles that rows need at most, however they fall into groups."""
    return (num_rows + num_groups * (TILE - 1)) // TILE
