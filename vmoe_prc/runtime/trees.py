"""Names of the leaves of trees, such as `Encoder/encoderblock_0/Mlp/Dense_0/kernel`."""

from collections.abc import Callable
from typing import Any

import jax


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their names, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree with each leaf replaced by `function(name, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
