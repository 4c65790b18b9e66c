"""Every value that the schema allows for a choice is built, trained, evaluated and analysed.

The rows are configurations that together have all of the values; one that a new file registers
is among them.
"""

import collections
import functools
import json
import math

import pytest
from small_run import small_config

from vmoe_prc import analyze
from vmoe_prc.config import ConfigError, complete, evaluation_model, fields, override
from vmoe_prc.config.registry import Registry
from vmoe_prc.config.schema import REQUIRED, all_fields, entry_fields
from vmoe_prc.train import loop
from vmoe_prc.workdir.metrics import METRICS_FILE

# Options without a default.
SAMPLES = {
    "concentration": 0.2,
    "decay_rate": 0.9,
    "ensemble_size": 1,
    "max_epsilon": 0.01,
    "peak_value": 1e-3,
    "rules": (("params/head/bias", "norm"),),
    "timescale": 2,
    "transition_steps": 2,
    "value": 1e-3,
    "weight": 0.1,
}
# What cannot be together, by the field that the error names.
REPAIRS = {
    "config.consistency.pair_class_tokens": {"consistency": {"pair_class_tokens": False}},
    "config.mixup": {"mixup": None},
    "config.model.encoder.moe.router.dispatcher.batch_priority": {
        "model": {"encoder": {"moe": {"router": {"dispatcher": {"batch_priority": False}}}}}
    },
    "config.model.encoder.moe.router.dispatcher.name": {
        "model": {"encoder": {"moe": {"router": {"dispatcher": {"name": "gather"}}}}}
    },
}
# Given here, since every process that collects tests would take seconds to make the rows.
NUM_ROWS = 14
# Chosen by the recipe.
FIXED = {"evaluators", "loggers", "fewshot", "initialization", "profile", "dataset"}


def choices(section, values, prefix=()):
    """Yields (path, value) of every choice that a configuration makes."""
    entry = values[section.key] if isinstance(section, Registry) else None
    found = all_fields(section) if entry is None else entry_fields(section, entry)
    for key, field in found.items():
        path, value = (*prefix, key), values[key]
        if not prefix and key in FIXED:
            continue
        if field.section is not None:
            if value is not None:
                yield from choices(field.section, value, path)
        elif field.choices or field.hint is bool:
            yield path, value


def all_choices(section, prefix=()):
    """Yields (path, value) of every choice that any configuration can make."""
    parts = (
        [entry_fields(section, entry) for entry in section]
        if isinstance(section, Registry)
        else [all_fields(section)]
    )
    for key, field in ((key, field) for part in parts for key, field in part.items()):
        path = (*prefix, key)
        if not prefix and key in FIXED:
            continue
        if field.section is not None:
            yield from all_choices(field.section, path)
        elif field.choices or field.hint is bool:
            yield from ((path, value) for value in field.choices or (False, True))


def changes(section, values, counts, prefix=()):
    """Chooses the values that the rows have had least often."""
    values = values or {}
    result = {}
    if isinstance(section, Registry):
        path = (*prefix, section.key)
        result[section.key] = min(section, key=lambda entry: counts[path, entry])
        found = entry_fields(section, result[section.key])
    else:
        found = all_fields(section)
    for key, field in found.items():
        path = (*prefix, key)
        if key in result or (not prefix and key in FIXED):
            continue
        if field.section is not None:
            result[key] = changes(field.section, values.get(key), counts, path)
        elif field.choices or field.hint is bool:
            allowed = field.choices or (False, True)
            result[key] = min(allowed, key=lambda value, path=path: counts[path, value])
        elif field.default is REQUIRED and key not in values:
            result[key] = SAMPLES[key]
    return result


@functools.cache
def rows():
    base = small_config(None)
    with base.unlocked():
        base.train_steps = 2
        # The pairs are the same images, and have metrics of their own.
        del base.dataset["test"]
        base.dataset.test_pairs.split = "test[:64]"
        base.optimizer.learning_rate.warmup_steps = 1
    left, counts, found = set(all_choices(fields.Config)), collections.Counter(), []
    for turn in range(100):
        values = base.to_dict()
        # Mixup and consistency, which has more choices, take turns: they exclude each other.
        off = "mixup" if turn % 4 else "consistency"
        config = override(values, {**changes(fields.Config, values, counts), off: None})
        config = repaired(config)
        if turn > 1:
            config.model.encoder.update({"num_layers": 1})
            config.model.encoder.moe.layers = (0,)
        if turn > 5:  # Left are routers and losses; attacks would double each compilation.
            config.adversarial = None
        tokens = 16 + (config.model.classifier == "token")
        config.model.encoder.moe.group_size = 4 * tokens
        made = set(choices(fields.Config, config.to_dict()))
        counts.update(made)
        if made & left:
            found.append(config)
        left -= made
        if not left:
            break
    assert not left, f"no row has {left}"
    return found


def repaired(config):
    while True:
        try:
            return complete(config)
        except ConfigError as error:
            if error.field not in REPAIRS:
                raise
            config = override(config, REPAIRS[error.field])


def test_rows_have_every_choice_in_training_and_evaluation():
    assert len(rows()) == NUM_ROWS
    made = {choice for row in rows() for choice in choices(fields.Config, row.to_dict())}
    assert made == set(all_choices(fields.Config))
    assert len(made) > 50


@pytest.mark.slow
@pytest.mark.parametrize("number", range(NUM_ROWS))
def test_every_choice_trains_and_is_analysed(number, digits_dir, tmp_path):
    config = rows()[number].copy_and_resolve_references()
    with config.unlocked():
        for dataset in config.dataset.values():
            dataset.data_dir = digits_dir
    assert evaluation_model(config)["name"] == config.model.name
    loop.train_and_evaluate(config, tmp_path)
    entries = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    numbers = [x for entry in entries for x in entry.values() if isinstance(x, float)]
    assert numbers and all(map(math.isfinite, numbers))
    assert analyze.main(["table", f"--workdir={tmp_path}"]) == 0
