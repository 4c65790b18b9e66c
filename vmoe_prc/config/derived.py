"""Parts of a configuration that follow from other parts."""

from collections.abc import Mapping
from typing import Any

import ml_collections

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


def fewshot_sections(options: Config) -> dict[str, dict[str, ml_collections.ConfigDict]]:
    """Returns the data sections of `config.fewshot`, like those of `config.dataset`.

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
