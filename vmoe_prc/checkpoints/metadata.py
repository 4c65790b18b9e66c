"""Metadata of parameters: the configuration and the classes of a run.

A work directory has them in `config.json` and `data.json`, an exported folder in `config.json`
and `classes.json`, a safetensors file in its metadata, and a checkpoint in V-MoE's format in
`PREFIX.json`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from vmoe_prc.checkpoints import safetensors
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.workdir.atomic import atomic_write
from vmoe_prc.workdir.history import class_names, read_config, read_json
from vmoe_prc.workdir.layout import CLASSES_FILE, CONFIG_FILE
from vmoe_prc.workdir.paths import user_path

_KEY = "vmoe_prc"


def read_metadata(prefix: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the configuration and the classes that belong to parameters.

    Args:
      prefix: As of `params.read_params`.

    Returns:
      `config`, the completed configuration as nested dicts, and `classes`, their names in the
      order of the labels; each only if it is known.

    Raises:
      CheckpointError: If they are there and cannot be read.
      ConfigError: If a file of the work directory is damaged.
    """
    path = user_path(prefix)
    sidecar = _sidecar(path)
    if path.suffix == ".safetensors":
        return _parse(safetensors.read_metadata(path).get(_KEY, "{}"), path)
    if sidecar.exists():
        return _parse(sidecar.read_text(), sidecar)
    if not (path / CONFIG_FILE).exists():
        return {}
    metadata: dict[str, Any] = {"config": read_config(path)}
    if (path / CLASSES_FILE).exists():
        metadata["classes"] = _class_list(path)
    elif classes := class_names(path):
        metadata["classes"] = classes
    return metadata


def _class_list(folder: epath.Path) -> list[str]:
    names = read_json(folder / CLASSES_FILE)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / CLASSES_FILE}: expected a list of names")
    return names


def write_sidecar(path: epath.Path, metadata: Mapping[str, Any]) -> None:
    """Writes metadata next to a checkpoint in V-MoE's format."""
    with atomic_write(_sidecar(path)) as temporary:
        temporary.write_text(json.dumps(metadata, indent=2))


def as_safetensors(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns metadata as a safetensors file keeps it."""
    return {_KEY: json.dumps(metadata)} if metadata else {}


def _sidecar(path: epath.Path) -> epath.Path:
    return epath.Path(f"{os.fspath(path)}.json")


def _parse(text: str, path: epath.Path) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read: {error}") from None
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata are no object: {metadata!r:.80}")
    return metadata
