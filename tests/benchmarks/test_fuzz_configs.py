"""A short run of the fuzz: validation of many configurations, training of a few."""

import collections
import functools
import random

import pytest

from benchmarks import fuzz_configs

NUMBERS = range(400)


@functools.cache
def base():
    return fuzz_configs.base()  # `mutate` changes a copy.


def mutated(number):
    return fuzz_configs.mutate(random.Random(f"0/{number}"), base())


@pytest.mark.slow
def test_every_mistake_gets_one_line():
    ends = collections.Counter()
    for number in NUMBERS:
        changes, config = mutated(number)
        end, text = fuzz_configs.validate(config)
        assert end in ("accepted", "refused"), (number, changes, text)
        ends[end] += 1
    assert ends["accepted"] > 20 and ends["refused"] > 200  # Both kinds are drawn.


@pytest.mark.slow
def test_every_number_is_made_large():
    found = dict(fuzz_configs.large())
    for name in ("dataset.train.batch_size", "model.encoder.moe.mlp_dim", "fewshot.shots"):
        assert any(changes.startswith(f"{name} = ") for changes in found)
    ends = collections.Counter(fuzz_configs.validate(config)[0] for config in found.values())
    assert ends.keys() == {"accepted", "refused"}


def test_a_fault_is_shown(monkeypatch):
    def fail(config):
        raise KeyError("momentum")

    monkeypatch.setattr(fuzz_configs, "complete", fail)
    end, text = fuzz_configs.validate({})
    assert end == "traceback" and "KeyError: 'momentum'" in text


@pytest.mark.slow
def test_accepted_configurations_train(capsys):
    assert fuzz_configs.main(["--count=20", "--seed=1", "--timeout=200"]) == 0, capsys.readouterr()
