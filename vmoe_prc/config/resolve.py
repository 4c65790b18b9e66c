"""Completes the configuration that a user wrote: `complete`, `override`."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from vmoe_prc.config.checks import check_across
from vmoe_prc.config.derived import Config, evaluation_model, with_validation
from vmoe_prc.config.errors import ConfigError
from vmoe_prc.config.fields import Config as Fields
from vmoe_prc.config.files import import_modules
from vmoe_prc.config.schema import declared_fields
from vmoe_prc.config.sections import complete_section, merge
from vmoe_prc.config.values import complete_leaf, plain

# Where V-MoE's configs have fields that are elsewhere here.
_ROUTER = "config.model.encoder.moe.router"
MOVED = {
    **{
        f"{_ROUTER}.{name}_loss_weight": f"config.auxiliary_loss.{name}_loss_weight"
        for name in ("importance", "load", "gshard")
    },
    f"{_ROUTER}.dispatcher.partition_spec": "config.num_expert_partitions",
    f"{_ROUTER}.additional_losses": "config.consistency",
}


def complete(config: Config) -> ml_collections.ConfigDict:
    """Checks a configuration and fills in its defaults.

    The modules of `config.imports` are imported first: they register routers, losses and so on.

    Args:
      config: A mapping, such as the value of `get_config` of a config file.

    Raises:
      ConfigError: For the first field that is misspelt, missing, of another type, out of
        its range, or at odds with another field.
    """
    values = plain(config)
    if not isinstance(values, Mapping):
        raise ConfigError("config", values, "expected a ConfigDict, as get_config() returns")
    imports = declared_fields(Fields)["imports"]
    import_modules(complete_leaf(values.get("imports", ()), imports, "config.imports"))
    completed = complete_section(values, Fields, "config", MOVED)
    changes = completed["evaluate"]["model_overrides"]
    completed["evaluate"]["model_overrides"] = _values_of(evaluation_model(completed), changes)
    if (fewshot := completed["fewshot"]) is not None:
        for key, parts in fewshot["datasets"].items():
            fewshot["datasets"][key] = with_validation(parts, f"config.fewshot.datasets.{key}")
    check_across(completed)
    return ml_collections.ConfigDict(completed)


def _values_of(completed: Any, changes: Any) -> Any:
    """Returns the changed fields with the values that they were completed to."""
    if not isinstance(completed, Mapping) or not isinstance(changes, Mapping):
        return completed
    return {key: _values_of(completed[key], value) for key, value in changes.items()}


def override(config: Config, changes: Config) -> dict[str, Any]:
    """Returns a configuration with changed fields, which `complete` has yet to check.

    Args:
      config: The configuration.
      changes: New values, nested as in the configuration. A section keeps the fields that
        are not named; where another variant is chosen, it loses the fields of the old one.
        None switches a section off. A length in steps replaces one in epochs, and vice versa.
    """
    changes = plain(changes)
    merged = merge(plain(config), changes, Fields)
    if isinstance(merged, dict) and isinstance(changes, Mapping):
        for given, other in (("train_steps", "train_epochs"), ("train_epochs", "train_steps")):
            if changes.get(given) is not None and other not in changes:
                merged[other] = None
    return merged
