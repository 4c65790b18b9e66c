"""What holds for all scripts of launch/, and for the container file."""

import re
import subprocess

import pytest
from stand_ins import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))
COMMANDS = {
    "tpu_pod.sh": ["start", "--zone=us-central2-b", "--workdir=gs://bucket/x"],
    "slurm.sh": ["submit", "--workdir=/x"],
    "gke_jobset.sh": [
        *("render", "--image=x", "--accelerator=tpu-v6e-slice", "--topology=4x4"),
        "--workdir=gs://bucket/x",
    ],
}
RECIPE = "--config=configs/digits_prc.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", f"launch/{script}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", [*COMMANDS, "worker.sh"])
def test_help(stand_ins, script):
    result = stand_ins.run(script, "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert f"launch/{script} " in result.stdout
    assert "set -euo" not in result.stdout and "#" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--name=a b"], "--name = 'a b': expected at most 40 lower-case letters"),
        (["--name=a;ls"], "--name = 'a;ls'"),
        (["--name=$(ls)"], "--name = '$(ls)'"),
        (["--name="], "--name = ''"),
        (["--name=-x"], "--name"),
        (["--config=configs/digitz.py"], "no such file"),
        (["--config="], "--config: needs a recipe"),
        (["--nome=x"], "--nome: no such option"),
        (["--a[$(touch${IFS}here)]=x"], "no such option"),
        (["--name"], "--name: needs a value"),
        (["other"], "'other': one action only"),
        (["--", "x"], "'x': flags of the program begin with --"),
        (["--", "--config.description=two\nlines"], "control character"),
    ],
)
def test_what_every_script_refuses(stand_ins, script, changed, message):
    stand_ins.refuses(message, script, *COMMANDS[script], "--name=x", RECIPE, *changed)
    assert not (stand_ins.folder / "here").exists()


@pytest.mark.parametrize("script", COMMANDS)
def test_an_action_is_needed(stand_ins, script):
    assert "name an action" in stand_ins.run(script, "--name=x").stderr
    zone = ["--zone=us-central2-b"] if script == "tpu_pod.sh" else []
    result = stand_ins.run(script, "dance", "--name=x", *zone)
    assert result.returncode == 2 and "'dance': no such action" in result.stderr


@pytest.mark.parametrize("script", COMMANDS)
def test_values_may_stand_apart(stand_ins, script):
    joined = stand_ins.run(script, *COMMANDS[script], "--name=x", RECIPE, "--dry_run")
    apart = stand_ins.run(script, *COMMANDS[script], "--name", "x", *RECIPE.split("="), "--dry_run")
    assert joined.returncode == 0, joined.stderr
    assert apart.stdout == joined.stdout


def test_the_container_file():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert copied and all((ROOT / name).exists() for name in copied)
    version = re.search(r"^jax==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    (install,) = [line for line in lines if "pip install" in line]
    readme = (ROOT / "README.md").read_text()
    for accelerator in ("cuda13", "tpu"):
        extra = f'"jax[{accelerator}]=={version}"'
        assert extra in install.replace("${ACCELERATOR}", accelerator)
        assert f"pip install {extra}" in readme
    (python,) = [line.removeprefix("FROM python:") for line in lines if line.startswith("FROM")]
    assert f"--python={python.removesuffix('-slim')} " in (ROOT / "launch/tpu_pod.sh").read_text()
