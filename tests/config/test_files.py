"""Config files: where they are found, what they may import, and bugs in them."""

import json
import os
import subprocess
import sys
import traceback

import pytest

from configs import digits_prc
from vmoe_prc.config import ConfigError, complete
from vmoe_prc.config.files import read_config_file


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["digits_prc", "configs/digits_prc.py", "digits_prc.py"])
def test_a_recipe_is_found_by_its_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config_file(f"{name}:k=1", "--config") == digits_prc.get_config("k=1")
    assert read_config_file("studies/digits", "--study").seeds == (0, 1, 2)


def test_a_file_here_comes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "digits_prc.py", "def get_config(arguments):\n    return {'seed': 5}")
    assert read_config_file("digits_prc.py", "--config").seed == 5


def test_an_edited_file_is_read_again_and_nothing_is_written_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    for seed in (5, 6):  # In one second, and of one size.
        path.write_text(f"def get_config():\n    return {{'seed': {seed}}}")
        os.utime(path, (1e9, 1e9))
        assert read_config_file(str(path), "--config").seed == seed
    assert list(tmp_path.iterdir()) == [path]


def test_dicts_will_do(tmp_path):
    text = "from configs import digits_prc\n\ndef get_config(arguments):\n"
    source = write(tmp_path / "c.py", text + "    return digits_prc.get_config().to_dict()")
    assert complete(read_config_file(source, "--config")) == digits_prc.get_config()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "no.py",
            None,
            "no such file, and no recipe of this name; recipes: cifar100_eee, cifar10_vmoe",
        ),
        ("digit_prc", None, r"did you mean 'digits_prc'\?"),
        ("c.txt", "", r"expected a Python file \(.py\)"),
        ("c.py", "x = 1", r"has no function get_config\(arguments\)"),
        ("c.py", "get_config = lambda arguments: 3", "must return a ConfigDict or a dict, not 3"),
    ],
)
def test_files_that_are_no_configs(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    source = name if name == "digit_prc" else str(path)
    with pytest.raises(ConfigError, match=message) as error:
        read_config_file(source, "--config")
    assert error.value.__cause__ is None and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("def get_config(arguments):\n    return undefined", "NameError", "line 2"),
        ("def get_config(arguments:\n    pass", "SyntaxError", "line 1"),
        ("import no_such_module\ndef get_config(a): pass", "ModuleNotFoundError", "line 1"),
        ("def get_config(arguments):\n    return {}.encodr", "AttributeError", "line 2"),
    ],
)
def test_a_bug_in_a_config_file_keeps_its_file_and_line(tmp_path, text, name, line):
    source = write(tmp_path / "buggy.py", text)
    with pytest.raises(ConfigError, match=f"its code fails with {name}") as error:
        read_config_file(source, "--config")
    shown = "".join(traceback.format_exception(error.value.__cause__))
    assert "\n" not in str(error.value)
    assert f'buggy.py", {line}' in shown


ROUTER = """
from vmoe_prc.config.registry import SCHEDULES

@SCHEDULES.register("{name}")
def schedule(options, total_steps):
    return lambda step: 0.1
"""


@pytest.mark.slow
def test_modules_next_to_a_config_register_what_it_names(tmp_path):
    """A process that knows only config.json finds the module again."""
    write(tmp_path / "helpers_of_mine.py", "SCHEDULE = 'mine'")
    write(tmp_path / "my_schedule.py", ROUTER.format(name="mine"))
    text = """
from helpers_of_mine import SCHEDULE
from configs import digits_prc
from vmoe_prc.config import complete, override

def get_config(arguments):
    changes = {"optimizer": {"learning_rate": {"schedule": SCHEDULE}}, "imports": ("my_schedule",)}
    return complete(override(digits_prc.get_config(), changes))
"""
    source = write(tmp_path / "with_schedule.py", text)
    saved = in_process(f"read_config_file({source!r}, 'x')")
    config = json.loads(in_process(f"json.loads({saved!r})"))
    assert config["imports"] == [str(tmp_path / "my_schedule.py")]
    assert config["optimizer"]["learning_rate"] == {"schedule": "mine"}


def in_process(expression):
    """Completes a configuration in another process; returns it as JSON."""
    code = (
        "import json; from vmoe_prc.config import complete\n"
        "from vmoe_prc.config.files import read_config_file\n"
        f"print(json.dumps(complete({expression}).to_dict(), default=list))"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)


def test_imports_that_fail(tmp_path):
    config = digits_prc.get_config().to_dict()
    for name, message in (
        ("no_module_of_this_name", "no such module next to the config file or on PYTHONPATH"),
        (str(tmp_path / "none.py"), "no such file"),
        (write(tmp_path / "broken.py", "1 / 0"), "its code fails with ZeroDivisionError"),
    ):
        with pytest.raises(ConfigError, match=message):
            complete({**config, "imports": (name,)})
    assert "broken" not in sys.modules
