"""The configurations that a run has had, and the data that it trains on.

`config.json` is the present configuration. `config_history.json` is a list of
`{"after_step": N, "config": {...}}`, one for each stretch of steps, so that a configuration
that is changed on resume does not hide what the steps before it ran with.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from vmoe_prc.config import ConfigError, flatten
from vmoe_prc.workdir.atomic import atomic_write
from vmoe_prc.workdir.layout import CONFIG_FILE, CONFIG_HISTORY_FILE, DATA_FILE


class Stretch(NamedTuple):
    """Steps that ran with one configuration.

    Attributes:
      after_step: Step that they follow, 0 at the beginning of a run.
      config: The configuration.
    """

    after_step: int
    config: Mapping[str, Any]


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file of a work directory.

    Raises:
      ConfigError: If it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError("--workdir", str(path.parent), f"{path.name}: {reason}") from None


def read_config(workdir: epath.Path) -> dict[str, Any]:
    """Reads the `config.json` of a run.

    Raises:
      ConfigError: If it is missing or damaged.
    """
    config = read_json(workdir / CONFIG_FILE)
    if not isinstance(config, dict):
        raise _damaged(workdir, CONFIG_FILE, "expected an object with the sections of a config")
    return config


def read_history(workdir: epath.Path) -> list[Stretch]:
    """Reads the configurations of a run in the order of its steps; [] if it has none.

    Raises:
      ConfigError: If a file is damaged.
    """
    if not (workdir / CONFIG_FILE).exists():
        return []
    config, path = read_config(workdir), workdir / CONFIG_HISTORY_FILE
    if not path.exists():
        return [Stretch(0, config)]
    stretches = read_json(path)
    try:
        return [Stretch(int(s["after_step"]), dict(s["config"])) for s in stretches]
    except (TypeError, KeyError, ValueError):
        raise _damaged(workdir, path.name, "expected a list of stretches of steps") from None


def record_config(config: Mapping[str, Any], workdir: epath.Path, step: int) -> None:
    """Writes the configuration of the steps after `step`, and logs how it has changed.

    Args:
      config: The completed configuration, of plain values.
      workdir: Directory of the run, made if missing.
      step: Step that the run starts from.

    Raises:
      ConfigError: If the files of an earlier start are damaged.
    """
    # As it is read again: tuples become lists.
    config = json.loads(json.dumps(config, default=list))
    stretches = read_history(workdir)
    if stretches:
        _log_changes(stretches[-1].config, config)
    # A start that took no step to a checkpoint has left nothing behind.
    stretches = [s for s in stretches if s.after_step < step]
    if not stretches or stretches[-1].config != config:
        stretches.append(Stretch(step, config))
    _write_json(workdir / CONFIG_HISTORY_FILE, [s._asdict() for s in stretches])
    _write_json(workdir / CONFIG_FILE, config)


def check_data(splits: Mapping[str, Mapping[str, Any]], workdir: epath.Path) -> None:
    """Compares the data of a resumed run with the data of its earlier steps.

    Args:
      splits: By split: `name`, `split`, `num_examples`, `classes` (names in the order of the
        labels, or None) and `digest`.
      workdir: Directory of the run.

    Raises:
      ConfigError: If the classes of a split are not those that the run began with.
    """
    earlier = read_data(workdir)
    for name in sorted(earlier.keys() & splits.keys()):
        _check_split(name, earlier[name], splits[name])


def record_data(splits: Mapping[str, Mapping[str, Any]], workdir: epath.Path) -> None:
    """Writes which data a run uses; see `check_data`."""
    _write_json(workdir / DATA_FILE, splits)


def read_data(workdir: epath.Path) -> dict[str, dict[str, Any]]:
    """Reads what `record_data` wrote; {} if there is nothing.

    Raises:
      ConfigError: If the file is damaged.
    """
    if not (workdir / DATA_FILE).exists():
        return {}
    data = read_json(workdir / DATA_FILE)
    if not isinstance(data, dict) or not all(isinstance(x, dict) for x in data.values()):
        raise _damaged(workdir, DATA_FILE, "expected an object with the splits of the data")
    return data


def class_names(workdir: epath.Path) -> list[str] | None:
    """Returns the names of a run's classes in the order of the labels; None if unknown."""
    data = read_data(workdir)
    names = [split["classes"] for split in data.values() if split.get("classes")]
    return list(names[0]) if names else None


def _check_split(name: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if earlier.get("classes") != now["classes"]:
        expected = (
            f"its classes are not those that this run began with: "
            f"{_class_changes(earlier.get('classes') or (), now['classes'] or ())}"
        )
        raise ConfigError(f"config.dataset.{name}.name", now["name"], expected)
    if earlier.get("digest") != now["digest"]:
        logging.warning(
            "the data of config.dataset.%s have changed since this run began: %s examples then, "
            "%s now; its steps differ from now on from an uninterrupted run's",
            name,
            earlier.get("num_examples"),
            now["num_examples"],
        )


def _class_changes(old: Sequence[str], new: Sequence[str]) -> str:
    """Says how classes differ; labels are their positions."""
    added = [name for name in new if name not in old]
    removed = [name for name in old if name not in new]
    if not added and not removed:
        first = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        return f"their order has changed: class {first} was {old[first]!r} and is {new[first]!r}"
    parts = [f"{len(old)} then, {len(new)} now"]
    parts += [f"new: {_shorten(added)}"] if added else []
    parts += [f"missing: {_shorten(removed)}"] if removed else []
    return "; ".join(parts)


def _shorten(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _log_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    earlier, now = flatten(earlier), flatten(now)
    for field in sorted(earlier.keys() | now.keys()):
        if earlier.get(field) != now.get(field):
            logging.warning(
                "config.%s was %r in the steps so far, and is now %r",
                field,
                earlier.get(field),
                now.get(field),
            )


def _write_json(path: epath.Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2))


def _damaged(workdir: epath.Path, file: str, expected: str) -> ConfigError:
    return ConfigError("--workdir", str(workdir), f"{file} is damaged: {expected}")
