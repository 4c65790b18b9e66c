"""Parts of a configuration that follow from other parts."""

import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from vmoe_prc.config.errors import ConfigError
from vmoe_prc.config.fields import Dataset
from vmoe_prc.config.registry import MODELS
from vmoe_prc.config.sections import complete_section, merge
from vmoe_prc.config.values import plain

Config = Mapping[str, Any] | ml_collections.ConfigDict
EVALUATION_MODEL = "config.model with config.evaluate.model_overrides"


def evaluation_model(config: Config) -> dict[str, Any]:
    """Returns the `model` of a configuration as it is evaluated, with its overrides.

    Raises:
      ConfigError: If the overridden model is not allowed.
    """
    overrides = plain(config["evaluate"]["model_overrides"])
    merged = merge(plain(config["model"]), overrides, MODELS)
    return complete_section(merged, MODELS, EVALUATION_MODEL)


def with_validation(parts: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Takes the last tenth of the training split for validation, where V-MoE names three parts.

    Args:
      parts: (TFDS name, training, test split), or with the validation split before the last.
      field: Name of the field, for errors.

    Raises:
      ConfigError: If the training split is neither a whole one nor its first images.
    """
    if len(parts) != 3:
        return parts
    name, train, test = parts
    if re.fullmatch(r"\w+", train):
        return name, f"{train}[:90%]", f"{train}[90%:]", test
    if found := re.fullmatch(r"(\w+)\[:(\d+)(%?)\]", train):
        split, end, unit = found[1], int(found[2]), found[3]
        part = f"{end * 9 // 10}{unit}"
        return name, f"{split}[:{part}]", f"{split}[{part}:{end}{unit}]", test
    raise ConfigError(field, parts, f"expected ({name!r}, training, validation, test split)")


def fewshot_sections(options: Config) -> dict[str, dict[str, ml_collections.ConfigDict]]:
    """Returns the data sections of `config.fewshot`, like the sections of `config.dataset`.

    Args:
      options: `config.fewshot`, completed.

    Returns:
      A section by data set and by its split 'train', 'val' or 'test'.
    """
    shared = {name: options[name] for name in ("process", "batch_size", "data_dir")}
    return {
        name: {
            split: ml_collections.ConfigDict(
                complete_section({**shared, "name": dataset, "split": part}, Dataset, name)
            )
            for split, part in zip(("train", "val", "test"), parts, strict=True)
        }
        for name, (dataset, *parts) in options["datasets"].items()
    }
