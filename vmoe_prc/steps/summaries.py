"""Numbers of single arrays of a state, by rules on their names."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from vmoe_prc.runtime.trees import named_leaves

Axes = tuple[int, ...] | None
OPERATIONS: Mapping[str, Callable[[jax.Array, Axes], jax.Array]] = {
    "mean": lambda x, axes: jnp.mean(x, axes, keepdims=True),
    "std": lambda x, axes: jnp.std(x, axes, keepdims=True),
    "sum": lambda x, axes: jnp.sum(x, axes, keepdims=True),
    "min": lambda x, axes: jnp.min(x, axes, keepdims=True),
    "max": lambda x, axes: jnp.max(x, axes, keepdims=True),
    "norm": lambda x, axes: jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)),
}


def parse_rules(rules: Sequence[Any]) -> list[tuple[re.Pattern[str], list[tuple[str, Axes]]]]:
    """Reads rules: a regex, or (regex, operation, …), an operation being a name or (name, axes).

    Raises:
      ValueError: If a rule is of another form, or its operation is unknown.
    """
    parsed = []
    for rule in rules:
        parts = (rule,) if isinstance(rule, str) else rule
        if not isinstance(parts, tuple | list) or not parts or not isinstance(parts[0], str):
            raise ValueError(f"{rule!r}: expected a regex, or (regex, operation, ...)")
        operations = [_parse_operation(rule, operation) for operation in parts[1:]]
        parsed.append((re.compile(parts[0]), operations))
    return parsed


def _parse_operation(rule: Any, operation: Any) -> tuple[str, Axes]:
    name, axes = operation, None
    if isinstance(operation, tuple | list) and len(operation) == 2:
        name, axes = operation
        if axes is not None:
            axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
    if not isinstance(name, str) or not all(type(axis) is int for axis in axes or ()):
        expected = "expected an operation, or (operation, axes)"
        raise ValueError(f"{rule!r}: {expected}, not {operation!r}")
    if name not in OPERATIONS:
        allowed = ", ".join(OPERATIONS)
        raise ValueError(f"{rule!r}: unknown operation {name!r}; allowed: {allowed}")
    return name, axes


def summarize(tree: Any, rules: Sequence[Any], max_summary_values: int = 1) -> dict[str, jax.Array]:
    """Applies rules to the arrays whose names they find; may be jitted.

    Args:
      tree: Tree of arrays, such as `{"params": params}`.
      rules: See `parse_rules`. The operations of a rule are applied one after the other.
      max_summary_values: Numbers that a rule may give for one array.

    Returns:
      Scalars by the name of the array, the operations, and the index where there are several:
      `params/head/kernel_norm(0,)[3]`.

    Raises:
      ValueError: If a rule gives more numbers than `max_summary_values`.
    """
    found: dict[str, jax.Array] = {}
    for regex, operations in parse_rules(rules):
        matches = {name: x for name, x in named_leaves(tree).items() if regex.search(name)}
        if not matches:
            logging.warning("summarize_arrays: no array has a name with %r", regex.pattern)
        for name, value in matches.items():
            for operation, axes in operations:
                value = OPERATIONS[operation](value, axes)
                name += f"_{operation}" + ("" if axes is None else str(axes))
            if value.size > max_summary_values:
                raise ValueError(
                    f"{regex.pattern!r} gives {value.size} numbers for {name}; "
                    f"max_summary_values = {max_summary_values}"
                )
            for index in itertools.product(*map(range, value.shape)):
                place = ",".join(str(i) for i, n in zip(index, value.shape, strict=True) if n > 1)
                found[name + (f"[{place}]" if place else "")] = value[index]
    return found
