"""The command line, in processes of its own."""

import subprocess
import sys

import pytest


def run(*arguments, cwd="."):
    command = [sys.executable, "-m", "vmoe_prc.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_help_explains_itself():
    result = run("--help")
    assert "configs/digits_prc.py:k=1,prc=off" in result.stdout
    assert "--workdir" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Flag --config must have a value"),
        (["--config=configs/digits_prc.py:prk=off"], "'prk' = 'off': unknown; allowed: k, prc"),
        (["--config=configs/digits_prc.py:k=9"], "num_selected_experts = 9: must not exceed"),
        (["--config=configs/digits.py"], "configs/digits.py"),
        (["--config=configs/digits_prc.py", "--wrkdir=x"], "Did you mean: workdir"),
        (["--config=configs/digits_prc.py", "--config.sede=1"], "did you mean 'seed'"),
        (["--config=configs/digits_prc.py", "--config.seed=x"], "config.seed = 'x': expected int"),
        # A field that is None by default can be set, and is checked like all others.
        (["--config=configs/digits_prc.py", "--config.ema_decay=2"], "ema_decay = 2.0: expected"),
        (
            ["--config=configs/imagenet_prc.py", "--config.dataset.test.data_dir=/none"],
            "config.dataset.test.name = 'imagenet2012': is not prepared in /none/imagenet2012",
        ),
    ],
)
def test_mistakes_get_one_line_and_status_2(arguments, message, tmp_path):
    result = run(*arguments, *([f"--workdir={tmp_path}/new"] if arguments else []))
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_new_work_directories_are_named_by_config_and_time():
    code = "from vmoe_prc import main; print(main.new_workdir('a/digits_prc.py:k=1,prc=off'))"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.startswith("workdir/digits_prc-k=1-prc=off-2")
