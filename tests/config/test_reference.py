"""The reference of the configuration, which is made from the schema."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from configs import digits_prc
from vmoe_prc.config import ConfigError, fields
from vmoe_prc.config.options import option
from vmoe_prc.config.reference import explain
from vmoe_prc.config.registry import Registry
from vmoe_prc.config.schema import all_fields, entry_fields

PAGE = pathlib.Path(__file__).parents[2] / "docs/CONFIG.md"


def test_the_page_is_current():
    # A process of its own, whose registries have no entries of other tests.
    command = [sys.executable, "-m", "vmoe_prc.config", "--markdown"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert PAGE.read_text() == made, "python -m vmoe_prc.config --markdown > docs/CONFIG.md"


def every_field(section, name="config"):
    entries = (
        [entry_fields(section, entry) for entry in section]
        if isinstance(section, Registry)
        else [all_fields(section)]
    )
    for key, field in ((key, field) for entry in entries for key, field in entry.items()):
        yield f"{name}.{key}", field
        if field.section is not None:
            yield from every_field(field.section, f"{name}.{key}")


def test_every_field_has_one_sentence():
    for name, field in every_field(fields.Config):
        assert field.info.help.endswith("."), name
        assert field.info.help[0].isupper() or field.info.help[0] == "`", name
        assert "\n" not in field.info.help and len(field.info.help) < 250, name


def test_explains_a_field_and_a_section():
    config = digits_prc.get_config()
    assert explain("optimizer.gradient_clip.global_norm", config).splitlines()[:2] == [
        "config.optimizer.gradient_clip.global_norm = 1.0",
        "    float or None above 0; default None",
    ]
    section = explain("config.optimizer", config)
    assert "config.optimizer.b1 = 0.9" in section and "momentum" not in section
    assert "config.mixup = None" in explain("mixup", config)
    assert "config.mixup.size = None\n    int from 2" in explain("mixup", config)
    assert "config.dataset.test.split = 'test'" in explain("dataset.test", config)
    with pytest.raises(ConfigError, match=r"--explain = 'optimiser': .* did you mean 'optimizer'"):
        explain("optimiser", config)


def test_options_of_an_entry_of_ones_own_are_fields_like_all_others():
    registry = Registry("thing")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        size: int = option(3, "Size of the thing.", minimum=1)

    registry.register("mine", options=Options)(object)
    field = entry_fields(registry, "mine")["size"]
    assert (field.describe(), field.default) == ("int of at least 1", 3)
