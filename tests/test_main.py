"""The command line of training: in this process, and in one of its own where it imports JAX."""

import subprocess
import sys

import pytest

from vmoe_prc import main
from vmoe_prc.config import complete
from vmoe_prc.config.files import read_config_file


@pytest.fixture
def run(capsys):
    """Runs the command in this process; returns status, output and errors."""

    def run(*arguments):
        try:
            status = main.main(arguments)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def start(*arguments):
    """Runs the command in a process of its own."""
    command = [sys.executable, "-m", "vmoe_prc.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_explains_itself():
    output = start("--help").stdout
    assert "configs/digits_prc.py:k=1,prc=off" in output and "--config.seed=1" in output
    assert "--workdir" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config=configs/digits_prc.py:prk=off"], "'prk' = 'off': unknown; allowed: k, prc"),
        (["--config=configs/digits_prc.py:k=9"], "num_selected_experts = 9: must not exceed"),
        (["--config=configs/digits.py"], "configs/digits.py"),
        (["--config=configs/digits_prc.py", "--wrkdir=x"], "did you mean '--workdir'"),
        (["--config=configs/digits_prc.py", "--config.sede=1"], "did you mean 'seed'"),
        (["--config=configs/digits_prc.py", "--config.seed=x"], "config.seed = 'x': expected int"),
        # A field that is None by default can be set, and is checked like all others.
        (["--config=configs/digits_prc.py", "--config.ema_decay=2"], "ema_decay = 2.0: expected"),
        (["--config=configs/digits_prc.py", "here"], "unrecognized arguments: here"),
    ],
)
def test_mistakes_get_one_line_and_status_2(arguments, message, run, tmp_path):
    status, output, errors = run(*arguments, *([f"--workdir={tmp_path}/new"] if arguments else []))
    assert status == 2 and not output
    [line] = errors.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "new").exists()


def test_a_traceback_is_shown_when_asked_for(run, monkeypatch):
    arguments = ["--config=configs/digits_prc.py", "--config.sede=1", "--traceback"]
    monkeypatch.setattr(sys, "argv", arguments)
    status, _, errors = run(*arguments)
    assert status == 2 and "Traceback" in errors


@pytest.mark.slow
def test_data_that_are_not_there_get_one_line_before_anything_is_written(tmp_path):
    arguments = ["--config=configs/imagenet_prc.py", "--config.dataset.test.data_dir=/none"]
    result = start(*arguments, f"--workdir={tmp_path}/new")
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (
        "config.dataset.test.name = 'imagenet2012': is not prepared in /none/imagenet2012" in line
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_config_without_a_seed_and_one_of_a_folder_with_a_comma(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import digits_prc\n\ndef get_config(arguments):\n"
        "    config = digits_prc.get_config().to_dict()\n    del config['seed']\n"
        "    return config\n"
    )
    status, output, _ = run(f"--config={file}", "--explain=seed")
    assert not status and output.splitlines()[0] == "config.seed = 0"
    photos = tmp_path / "my, photos"
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for i in range(20):
            (photos / name / f"{i}.jpg").touch()
    config = f"--config=configs/photos_prc.py:prc=off,dir='{photos}',steps=40"
    status, output, _ = run(config, "--explain=dataset.train.manual_dir")
    shown = f"config.dataset.train.manual_dir = {str(photos)!r}"
    assert not status and output.splitlines()[0] == shown


def test_new_work_directories_are_named_by_config_and_time():
    name = str(main.new_workdir("a/digits_prc.py:k=1,prc=off"))
    assert name.startswith("workdir/digits_prc-k=1-prc=off-2")


def test_a_run_ends_with_the_command_that_predicts(tmp_path):
    config = complete(read_config_file("configs/digits_prc.py", "--config"))
    workdir = tmp_path / "my runs"
    command = main.predict_command(config, workdir)
    assert command == f"python -m vmoe_prc.predict '{workdir}' IMAGE"
    for name in [name for name in config.dataset if name not in ("train", "test_pairs")]:
        del config.dataset[name]
    assert main.predict_command(config, workdir) is None
