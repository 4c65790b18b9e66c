"""Maps the parameters of a checkpoint to a model's parameters, by rules in V-MoE's vocabulary.

A rule is `(pattern, replacement)` or `(pattern, replacement, transformation, *arguments)`.
The first rule whose pattern is found in the name of a source array renames it; without a
replacement the array is dropped. Transformations:

    reshape [shape]         the shape of the target, if none is given
    squeeze axis            drops axes of length 1
    stack axis              joins all sources of one target, in the order of their numbers
    expand_tile axis reps   adds axes and repeats the array along them
    noisy_copies count std  repeats the array along a new first axis, each copy with Gaussian
                            noise of `std` times the standard deviation of the array
    zoom                    resizes linearly to the shape of the target
    vit_zoom [grid]         the same for position embeddings, the class token left alone; `grid`
                            is (rows, columns) of the checkpoint's patches, square if not given
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.ndimage

from vmoe_prc.config import ConfigError, check_regex, nearest
from vmoe_prc.workdir.text_tables import aligned_lines

Shape = tuple[int, ...]

_PARAMS = "params/"


@dataclasses.dataclass(frozen=True)
class Moved:
    """Record of one transferred array.

    Attributes:
      target: Its name in the model, or None if nothing there needs it.
      sources: Names in the checkpoint; empty if the array stays as it was initialised.
      action: 'loaded', a transformation's name, 'new', or 'unused'.
      source_shape: Shape in the checkpoint.
      target_shape: Shape in the model.
    """

    target: str | None
    sources: tuple[str, ...]
    action: str
    source_shape: Shape | None
    target_shape: Shape | None


def transfer(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, jax.ShapeDtypeStruct],
    rules: Sequence[Sequence[Any]],
    *,
    raise_if_source_unmatched: bool = True,
    raise_if_target_unmatched: bool = True,
    field: str = "config.initialization",
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], list[Moved]]:
    """Makes the arrays of a model from the arrays of a checkpoint.

    Args:
      source: Arrays of the checkpoint by name, such as `params/head/kernel`.
      target: Shapes and dtypes of the model's arrays by name.
      rules: See the module's text.
      raise_if_source_unmatched: Whether an array without a rule is an error, rather than
        kept under its own name.
      raise_if_target_unmatched: Whether an array of the model that gets nothing is an error,
        rather than left as it was initialised.
      field: Name of the configuration's section, for errors.
      grid: (rows, columns) of the model's patches; a square grid if None.

    Returns:
      The new arrays by their names in the model, in its dtypes, and what became of each.

    Raises:
      ConfigError: If a rule cannot be used, leads nowhere, or a shape does not fit.
    """
    chosen, unused, unmatched = _match(
        source, target, rules, raise_if_source_unmatched, raise_if_target_unmatched, field
    )
    arrays, moved = {}, []
    for name, (rule, names) in chosen.items():
        values = [source[n] for n in names]
        arrays[name] = _transformed(values, target[name], rule, names, name, field, grid)
        shape, new_shape = source[names[0]].shape, target[name].shape
        changed = len(rule) > 2 and (len(names) > 1 or shape != new_shape)
        if rule[2:3] == ("vit_zoom",):  # From 4 x 4 to 2 x 8 patches the shape stays.
            changed |= not np.array_equal(arrays[name], values[0].astype(arrays[name].dtype))
        action = rule[2] if changed else "loaded"
        moved.append(Moved(name, tuple(names), action, shape, new_shape))
    moved += [Moved(name, (), "new", None, target[name].shape) for name in unmatched]
    moved += [Moved(None, (name,), "unused", source[name].shape, None) for name in unused]
    return arrays, moved


def plan_reading(
    source: Mapping[str, jax.ShapeDtypeStruct],
    target: Mapping[str, jax.ShapeDtypeStruct],
    rules: Sequence[Sequence[Any]],
    *,
    raise_if_source_unmatched: bool = True,
    raise_if_target_unmatched: bool = True,
    field: str = "config.initialization",
) -> tuple[dict[str, str], list[str]]:
    """Finds which arrays `transfer` copies as they are, without their values.

    Args:
      source: Shapes and dtypes of the checkpoint's arrays by name.
      target: Shapes and dtypes of the model's arrays by name.
      rules: See `transfer`.
      raise_if_source_unmatched: See `transfer`.
      raise_if_target_unmatched: See `transfer`.
      field: See `transfer`.

    Returns:
      By name in the model, the array of the checkpoint that is copied; and the names of those
      that are not needed.

    Raises:
      ConfigError: See `transfer`.
    """
    chosen, unused, _ = _match(
        source, target, rules, raise_if_source_unmatched, raise_if_target_unmatched, field
    )
    copied = {
        name: names[0]
        for name, (rule, names) in chosen.items()
        if len(rule) == 2 and source[names[0]].shape == target[name].shape
    }
    return copied, unused


def _match(
    source: Iterable[str],
    target: Mapping[str, jax.ShapeDtypeStruct],
    rules: Sequence[Sequence[Any]],
    raise_if_source_unmatched: bool,
    raise_if_target_unmatched: bool,
    field: str,
) -> tuple[dict[str, tuple[Sequence[Any], list[str]]], list[str], list[str]]:
    """Returns rule and sources by target, the sources without use, the targets without source."""
    rules = check_rules(rules, f"{field}.rules")
    chosen: dict[str, tuple[Sequence[Any], list[str]]] = {}
    unused = []
    for name in sorted(source, key=_natural):
        rule, written = _find_rule(rules, name)
        if rule is None and raise_if_source_unmatched:
            raise ConfigError(f"{field}.rules", name, "no rule matches this array")
        rule = rule or ("^(.*)$", r"\1")
        if not rule[1]:
            unused.append(name)
            continue
        renamed = _with_one_level(re.sub(rule[0], rule[1], written), target)
        if renamed not in target:
            raise ConfigError(
                f"{field}.rules",
                tuple(rule),
                f"makes {renamed!r} of {name!r}, which the model does not have",
                nearest(renamed, target),
            )
        if renamed in chosen and rule[2:3] != ("stack",):
            first = chosen[renamed][1][0]
            raise ConfigError(
                f"{field}.rules", tuple(rule), f"{first!r} and {name!r} both become {renamed!r}"
            )
        chosen.setdefault(renamed, (rule, []))[1].append(name)
    unmatched = [name for name in target if name not in chosen]
    if unmatched and raise_if_target_unmatched:
        raise ConfigError(
            f"{field}.rules",
            ", ".join(unmatched),
            "not in the checkpoint; set raise_if_target_unmatched=False to initialise it",
        )
    return chosen, unused, unmatched


def _find_rule(rules: Sequence[tuple[Any, ...]], name: str) -> tuple[tuple[Any, ...] | None, str]:
    """Returns the first rule that matches an array, and the name in which it does.

    Rules written for V-MoE may leave out the level `params`, which its files of parameters lack.
    """
    short = name.removeprefix(_PARAMS)
    for rule in rules:
        for written in (name, short):
            if re.search(rule[0], written):
                return rule, written
    return None, name


def _with_one_level(name: str, target: Container[str]) -> str:
    """Mends names of rules for V-MoE, whose checkpoints lack the level `params`."""
    if name.startswith(2 * _PARAMS):
        return name.removeprefix(_PARAMS)
    return _PARAMS + name if name not in target and _PARAMS + name in target else name


def format_table(moved: Sequence[Moved]) -> str:
    """Formats what became of each array as a table, one line an array."""
    header = ("parameter", "from", "", "shape")
    rows = []
    for m in moved:
        shapes = [
            str(s).replace(" ", "") for s in (m.source_shape, m.target_shape) if s is not None
        ]
        origin = m.sources[0] if len(m.sources) == 1 else f"{len(m.sources)} arrays"
        rows.append(
            (
                m.target or "-",
                "-" if not m.sources else "=" if m.sources == (m.target,) else origin,
                m.action,
                " -> ".join(dict.fromkeys(shapes)),
            )
        )
    lines = aligned_lines([header, *rows])
    counts = {a: sum(m.action == a for m in moved) for a in dict.fromkeys(m.action for m in moved)}
    return "\n".join([*lines, ", ".join(f"{n} {action}" for action, n in counts.items())])


def check_rules(rules: Sequence[Sequence[Any]], field: str) -> list[tuple[Any, ...]]:
    """Checks that rules are well formed.

    Raises:
      ConfigError: If a pattern is no regular expression, or a transformation is unknown.
    """
    for rule in rules:
        if isinstance(rule, str) or len(rule) < 2:
            raise ConfigError(field, rule, "expected (pattern, replacement[, transformation, ...])")
        check_regex(field, rule[0])
        if len(rule) > 2 and rule[2] not in _TRANSFORMATIONS:
            allowed = f"unknown transformation; allowed: {', '.join(_TRANSFORMATIONS)}"
            raise ConfigError(field, rule[2], allowed, nearest(str(rule[2]), _TRANSFORMATIONS))
    return [tuple(rule) for rule in rules]


def _transformed(
    values: list[np.ndarray],
    target: jax.ShapeDtypeStruct,
    rule: Sequence[Any],
    names: Sequence[str],
    name: str,
    field: str,
    grid: tuple[int, int] | None,
) -> np.ndarray:
    """Applies the transformation of a rule, and checks that the result fits the target."""
    where = f"{', '.join(names)} {values[0].shape} -> {name} {target.shape}"
    try:
        if rule[2:3] == ("vit_zoom",):
            value = _vit_zoom(values, target.shape, grid, *rule[3:])
        elif len(rule) > 2:
            value = _TRANSFORMATIONS[rule[2]](values, target.shape, *rule[3:])
        else:
            (value,) = values
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{field}.rules", where, f"{rule[2]} fails: {error}") from None
    if value.shape != target.shape:
        raise ConfigError(
            field,
            where,
            f"the checkpoint's array has the shape {value.shape}, the model's {target.shape}",
        )
    return np.asarray(value, target.dtype)


def _reshape(values, target_shape, shape=None):
    (value,) = values
    return value.reshape(target_shape if shape is None else shape)


def _squeeze(values, _, axis):
    (value,) = values
    return np.squeeze(value, axis)


def _stack(values, _, axis):
    return np.stack(values, axis)


def _expand_tile(values, _, axis, reps):
    (value,) = values
    value = np.expand_dims(value, axis)
    repeats = np.ones(value.ndim, int)
    repeats[np.atleast_1d(axis)] = reps
    return np.tile(value, repeats)


def _noisy_copies(values, _, count, std):
    (value,) = values
    # The same noise in every process, and other noise for each array.
    seed = zlib.crc32(np.ascontiguousarray(value, np.float32).tobytes())
    value = np.asarray(value, np.float32)
    noise = np.random.default_rng(seed).normal(size=(count, *value.shape))
    return (value + std * value.std() * noise).astype(np.float32)


def _zoom(values, target_shape):
    (value,) = values
    if value.ndim != len(target_shape):
        raise ValueError(f"{value.ndim} axes cannot become {len(target_shape)}")
    factors = [new / old for new, old in zip(target_shape, value.shape, strict=True)]
    # In float32: SciPy has no bfloat16.
    return np.asarray(scipy.ndimage.zoom(np.asarray(value, np.float32), factors, order=1))


def _vit_zoom(values, target_shape, new_grid=None, grid=None):
    (value,) = values
    if value.ndim != 3 or len(target_shape) != 3 or value.shape[2] != target_shape[2]:
        raise ValueError("expected (1, tokens, size) of one size")
    num_class_tokens, grid = _split_tokens(value.shape[1], grid, "give the rule its grid")
    new_num_class_tokens, new_grid = _split_tokens(target_shape[1], new_grid, "")
    size = value.shape[2]
    token, patches = value[:, :num_class_tokens], value[:, num_class_tokens:]
    if new_num_class_tokens > num_class_tokens:
        # As V-MoE's program: the embedding of a class token that the checkpoint lacks is drawn.
        token = 0.02 * np.asarray(jax.random.normal(jax.random.key(0), (1, 1, size)))
    if grid != new_grid:
        patches = patches.reshape(1, *grid, size)
        patches = _zoom([patches], (1, *new_grid, size)).reshape(1, -1, size)
    return np.concatenate([token[:, :new_num_class_tokens].astype(value.dtype), patches], axis=1)


def _split_tokens(
    num_tokens: int, grid: Sequence[int] | None, hint: str
) -> tuple[int, tuple[int, int]]:
    """Returns the number of class tokens, and rows and columns of the patches.

    Args:
      num_tokens: All tokens.
      grid: Rows and columns if they are known; otherwise the grid must be square.
      hint: Advice in the error about a grid that is not known.

    Raises:
      ValueError: If the tokens do not form the grid with at most one class token.
    """
    side = math.isqrt(num_tokens)
    rows, columns = (side, side) if grid is None else grid
    if num_tokens - rows * columns not in (0, 1):
        form = "no square grid" if grid is None else f"no grid of {rows} x {columns}"
        advice = f"; {hint}, such as ('posembed', ..., 'vit_zoom', (rows, columns))" if hint else ""
        raise ValueError(f"{num_tokens} tokens are {form}, with or without a class token{advice}")
    return num_tokens - rows * columns, (rows, columns)


_TRANSFORMATIONS: dict[str, Callable[..., np.ndarray]] = {
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "expand_tile": _expand_tile,
    "noisy_copies": _noisy_copies,
    "zoom": _zoom,
    "vit_zoom": _vit_zoom,
}


def _natural(name: str) -> list[Any]:
    """Sorts layer_10 behind layer_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
