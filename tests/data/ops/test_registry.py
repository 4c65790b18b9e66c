"""Parsing of preprocessing strings, and what their mistakes are answered with."""

import re
import subprocess
import sys

import pytest

from vmoe_prc.config import ConfigError
from vmoe_prc.data.ops import registry


def test_parse():
    assert registry.parse(
        'decode|resize((3, 4))|onehot(10, inkey="a|b", outkey="c")|flip_lr()'
    ) == [
        ("decode", (), {}),
        ("resize", ((3, 4),), {}),
        ("onehot", (10,), {"inkey": "a|b", "outkey": "c"}),
        ("flip_lr", (), {}),
    ]
    assert registry.parse("value_range(-1, 1)") == [("value_range", (-1, 1), {})]


def test_parsing_needs_no_tensorflow():
    code = "import sys; sys.modules['tensorflow'] = None\n"
    code += "import importlib.util as u, pathlib\n"
    code += f"spec = u.spec_from_file_location('pp', {registry.__file__!r})\n"
    code += "m = u.module_from_spec(spec); spec.loader.exec_module(m)\n"
    code += "assert m.parse('a|b(1)') == [('a', (), {}), ('b', (1,), {})]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ("decod|flip_lr", "unknown op; allowed: .*central_crop.*did you mean 'decode'"),
        ("decode|resize", "missing a required argument: 'size'; expected resize(size"),
        ("decode|flip_lr(32)", "too many positional arguments"),
        (
            "decode|resize(sise=32)",
            "unknown argument 'sise'; expected resize(size: .*did you mean 'size'",
        ),
        ("decode|resize(0)", "resize(0).*size 0 must be a positive integer"),
        ("decode|resize(1000000)", "at most 8192"),
        (
            'decode|two_views(8, ("a", 2))',
            "area0 = ('a', 2) is of another type; expected two_views(",
        ),
        ("decode|value_range(-1e999, 1)", "low = -inf is of another type"),
        ("decode|keep(3)", "keys = (3,) is of another type"),
        ("|".join(["flip_lr"] * 100_000), "is of 799,999 characters, and at most 2,000 are read"),
        ("decode|inception_crop(32, 0, 100)", r"area (0, 100) must be"),
        ("decode|two_views(32, (50, 20))", r"area (50, 20) must be"),
        ("onehot(0)", "num_classes = 0 must be a positive integer"),
        ("value_range(1, -1)", "low = 1 must be less than high = -1"),
        ("randaug(-1, 10)", "must be >= 0"),
        ("decode||flip_lr", "expected op"),
        ("decode|resize(f(3))", "arguments of resize must be literals"),
        ("decode + flip_lr", "expected op"),
    ],
)
def test_errors(process, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(ConfigError, match=pattern) as error:
        registry.build(process, "config.dataset.train.process")
    assert str(error.value).startswith("config.dataset.train.process = ")
    assert "\n" not in str(error.value)
