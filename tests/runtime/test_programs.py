"""What programs print of the errors that end them, and their exit statuses."""

import configparser
import importlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from vmoe_prc.checkpoints import export
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.config import ConfigError
from vmoe_prc.config.files import read_config_file
from vmoe_prc.errors import PreemptedError, RunError
from vmoe_prc.report import __main__ as report
from vmoe_prc.runtime import programs
from vmoe_prc.runtime.programs import EXTRAS, run_program


def raising(error):
    def program():
        raise error

    return program


@pytest.fixture
def not_a_user(monkeypatch):
    monkeypatch.setattr(programs, "_PACKAGE", str(pathlib.Path(__file__).parent))


class XlaRuntimeError(RuntimeError):
    """As JAX's, by its name."""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("config.k", 9, "too large"), 2, "error: config.k = 9: too large"),
        (RunError("w: the disk is full"), 1, "error: w: the disk is full"),
        # As names of files may have them.
        (
            ConfigError("config.k", "a\nb", "a\nb is gone"),
            2,
            "error: config.k = 'a\\nb': a b is gone",
        ),
        (CheckpointError("a\nb: damaged"), 2, "error: a b: damaged"),
        (
            PreemptedError(5),
            75,
            "preempted: checkpoint saved at step 5; run the same command to resume",
        ),
        (
            PreemptedError(5, "w/x"),
            75,
            "preempted: checkpoint saved at step 5; run the same command with --workdir=w/x to "
            "resume",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'"),
        (
            ModuleNotFoundError("No module named 'clu'", name="clu"),
            2,
            'error: clu is not installed: pip install "vmoe_prc[data]"',
        ),
        (
            ModuleNotFoundError("No module named 'jinja2'", name="jinja2"),
            2,
            'error: jinja2 is not installed: pip install "vmoe_prc[analysis]"',
        ),
        (
            XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 32382436240 bytes."),
            1,
            "error: out of memory (30.16 GiB asked for at once); use smaller batches",
        ),
        (
            MemoryError("Unable to allocate 3.60 TiB for an array with shape (9,)"),
            1,
            "error: out of memory (3.60 TiB asked for at once); use smaller batches",
        ),
    ],
)
@pytest.mark.usefixtures("not_a_user")
def test_an_error_that_we_recognise_is_one_line(error, status, line, capsys, monkeypatch):
    for name in ("clu", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)  # As if they were not installed.
    assert run_program(raising(error), show_traceback=False) == status
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith(line)


@pytest.mark.usefixtures("not_a_user")
def test_the_traceback_is_shown_when_asked_for_and_where_no_line_says_it(capsys):
    run_program(raising(RunError("the disk is full")), show_traceback=True)
    assert "in program" in capsys.readouterr().err
    assert run_program(raising(RuntimeError("a bug of ours")), show_traceback=False) == 1
    assert "in program" in capsys.readouterr().err


def test_a_real_allocation_that_fails_is_out_of_memory(capsys):
    assert run_program(lambda: np.empty((2**40, 2**10)) is None, show_traceback=False) == 1
    assert capsys.readouterr().err.startswith("error: out of memory (8.00 PiB asked for at once)")


def test_a_bug_of_the_user_keeps_its_traceback(tmp_path, capsys):
    """Also where a colleague hides the cause by `from None`."""
    file = tmp_path / "mine.py"
    file.write_text("def get_config(arguments):\n    return {}['missing']\n")
    status = run_program(lambda: read_config_file(str(file), "--config") and 0, False)
    printed = capsys.readouterr().err
    assert status in (1, 2)
    assert f'File "{file}", line 2, in get_config' in printed
    assert printed.splitlines()[-1] == "KeyError: 'missing'"


def test_a_mistake_that_a_config_file_reports_is_one_line(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from vmoe_prc.config import ConfigError\n"
        "def get_config(arguments):\n    raise ConfigError('k', 3, 'expected 1 or 2')\n"
    )
    assert run_program(lambda: read_config_file(str(file), "--config") and 0, False) == 2
    assert capsys.readouterr().err == "error: k = 3: expected 1 or 2\n"


@pytest.mark.parametrize("main", [report.main, export.main])
def test_programs_share_it(main, tmp_path, capsys):
    assert main([str(tmp_path / "missing"), *(["x.npz"] if main is export.main else [])]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main([str(tmp_path / "missing"), *(["x"] if main is export.main else []), "--traceback"])
    assert "Traceback" in capsys.readouterr().err


def test_every_optional_requirement_is_known():
    """Requirements of the extras, by the names that code imports."""
    config = configparser.ConfigParser()
    config.read(pathlib.Path(__file__).parents[2] / "setup.cfg")
    modules = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "pillow": "PIL"}
    modules |= {"scikit-image": "skimage", "tensorflow-cpu": "tensorflow"}
    modules |= {"mlflow-skinny": "mlflow"}
    for extra, names in EXTRAS.items():
        lines = config["options.extras_require"][extra].splitlines()
        listed = {line.partition(";")[0].strip() for line in lines if line and line[0] != "#"}
        expected = {modules.get(name, name).replace("-", "_") for name in listed - {"numba"}}
        assert set(names) == expected
    for name in EXTRAS["analysis"]:
        importlib.import_module(name)
    assert jax.__name__ in sys.modules


def test_notes_of_tensorflow_are_hidden_unless_they_are_asked_for(monkeypatch):
    for asked, level in ((None, "2"), ("0", "0")):
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
        if asked is not None:
            monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", asked)
        assert run_program(lambda: None) == 0
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == level


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_program_whose_output_nobody_reads_ends_without_a_word(rows):
    code = (
        "import sys, time; from vmoe_prc.runtime.programs import run_program\n"
        "sys.stdin.read()\n"
        f"sys.exit(run_program(lambda: print('row\\n' * {rows})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_a_broken_pipe_to_another_process_is_an_error(capsys):
    read, write = os.pipe()
    os.close(read)
    try:
        assert run_program(lambda: os.write(write, b"x")) == 2
    finally:
        os.close(write)
    assert "Broken pipe" in capsys.readouterr().err
