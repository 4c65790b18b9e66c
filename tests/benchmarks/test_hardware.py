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


@pytest.mark.parametrize("name", hardware.CASES)
def test_cases_are_recipes_and_targets(name):
    case = hardware.CASES[name]
    others, changes = split_config_flags(case.flags)
    config = complete(override(read_config_file(case.config, "--config"), changes))
    devices = parse_target(case.target).num_devices
    assert not others
    assert devices % config.num_expert_partitions == 0
    assert config.dataset.train.batch_size % devices == 0
