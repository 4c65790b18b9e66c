"""docs/HARDWARE.md says what the results say, and what has no result."""

import pytest

from benchmarks import hardware
from vmoe_prc.compile.targets import parse_target
from vmoe_prc.config import complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags


def test_the_page_is_current():
    text = hardware.page(hardware.read_results())
    assert hardware.PAGE.read_text() == text, "run `python -m benchmarks.hardware`"


def test_a_case_without_a_result_is_named():
    assert "Not compiled yet: `digits_v5e`" in hardware.page({})


def config_of(case):
    others, changes = split_config_flags(case.flags)
    assert not others
    return complete(override(read_config_file(case.config, "--config"), changes))


@pytest.mark.parametrize("name", hardware.CASES)
def test_cases_are_recipes_and_targets(name):
    case = hardware.CASES[name]
    config = config_of(case)
    devices = parse_target(case.target).num_devices
    assert devices % config.num_expert_partitions == 0
    assert config.dataset.train.batch_size % devices == 0


UNLIKE_THE_FORMULA = {
    # Kernels are gathered a second time for the backward pass.
    ("l16_h100x8_kernels", "all-gather"),
    # The compiler sums these small arrays whole, where the formula has a reduce-scatter.
    ("places_v5p", "all-reduce"),
    ("places_v5p", "reduce-scatter"),
}


@pytest.mark.parametrize("name", hardware.read_results())
def test_compiled_steps_are_clean(name):
    """Of what compilers made of each recipe; compiling them anew takes hours."""
    result, config = hardware.read_results()[name], config_of(hardware.CASES[name])
    assert result["fits"]
    assert result["host_calls"] == 0
    # The weights of mixup are drawn by rejection.
    assert result["loops_of_unknown_length"] == (2 if config.get("mixup") else 0)
    if result["target"].startswith("h100"):
        blocks, calls = config.model.encoder.num_layers, result["custom_calls"]
        again = config.model.encoder.get("remat", "none") != "none"
        assert calls["__cudnn$fmhaSoftmax"] == blocks * (1 + again)
        assert calls["__cudnn$fmhaSoftmaxBackward"] == blocks
    for kind, row in result["collectives"].items():
        # Metrics and norms are not in the formula, nor is what goes between slices.
        if (name, kind) not in UNLIKE_THE_FORMULA and not result.get("between_slices"):
            assert abs(row["bytes"] - row["formula"]) < 0.01 * row["formula"] + 1e5
