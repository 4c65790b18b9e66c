"""Names of the arrays in files: levels separated by `/`."""

import os
from collections.abc import Mapping
from typing import Any, cast

import flax.traverse_util

from vmoe_prc.checkpoints.manager import CheckpointError


def flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of nested dicts by their names."""
    return cast("dict[str, Any]", flax.traverse_util.flatten_dict(tree, sep="/"))


def nested(flat: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Turns arrays by their names into nested dicts.

    Args:
      flat: Arrays by names such as `params/head/kernel`.
      path: The file that they are from, for errors.

    Raises:
      CheckpointError: If a name is used for both an array and a group, or has an empty level.
    """
    for name in flat:
        parts = name.split("/")
        if not all(parts):
            raise CheckpointError(f"{path}: {name!r} is no name of an array")
        for depth in range(1, len(parts)):
            if (group := "/".join(parts[:depth])) in flat:
                raise CheckpointError(f"{path}: {group!r} is an array and a group of arrays")
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")
