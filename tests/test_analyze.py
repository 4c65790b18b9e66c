"""The commands on checkpoints without a run, and one line for what cannot be used."""

import json

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import pandas as pd
import pytest

from vmoe_prc import analyze
from vmoe_prc.analysis.opened_run import open_checkpoint, open_run
from vmoe_prc.checkpoints import export
from vmoe_prc.checkpoints.params import read_params, write_params
from vmoe_prc.config import complete
from vmoe_prc.config.files import read_config_file
from vmoe_prc.models import create_model

BLOCK = "encoderblock_1"


@pytest.fixture(scope="module")
def config_file(finished, tmp_path_factory):
    """The configuration of the run as a config file, whose argument is a split's examples."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(
        "import json, ml_collections\n"
        "def get_config(examples):\n"
        f"    text = open({str(finished[0] / 'config.json')!r}).read()\n"
        "    config = ml_collections.ConfigDict(json.loads(text))\n"
        "    config.dataset.test.split = examples or 'test'\n"
        "    return config\n"
    )
    return path


@pytest.fixture(scope="module")
def safetensors(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "tiny.safetensors"
    export.main([str(finished[0]), str(path)])
    return path


def refusal(arguments, capsys):
    """What a command that fails says, which is one line."""
    assert analyze.main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_checkpoint_gives_the_table_of_its_run(
    finished, safetensors, config_file, tmp_path, capsys
):
    paths = [tmp_path / name for name in ("run.parquet", "checkpoint.parquet")]
    checkpoint = [f"--checkpoint={safetensors}", f"--config={config_file}:"]
    for path, source in zip(paths, ([f"--workdir={finished[0]}"], checkpoint), strict=True):
        assert analyze.main(["table", *source, "--split=test", f"--output={path}"]) == 0
    pd.testing.assert_frame_equal(*map(pd.read_parquet, paths))
    assert f"{359 * 17 * 2:,} rows" in capsys.readouterr().out


def test_a_checkpoint_in_the_format_of_vmoe_opens(finished, config_file, tmp_path):
    run = open_run(finished[0])
    export.main([str(finished[0]), str(tmp_path / "vmoe_tiny")])
    config = read_config_file(str(config_file), "--config")
    opened = open_checkpoint(config, tmp_path / "vmoe_tiny")
    assert opened.name == "vmoe_tiny"
    jax.tree.map(np.testing.assert_array_equal, opened.params, run.params)


def test_an_empty_split(safetensors, config_file, tmp_path, capsys):
    arguments = [f"--checkpoint={safetensors}", f"--config={config_file}:test[:0]"]
    output = tmp_path / "out"
    for command in ("table", "robustness", "specialisation", "pictures"):
        line = refusal([command, *arguments, "--split=test", f"--output={output}"], capsys)
        assert line == "error: config.dataset.test.split = 'test[:0]': has no examples"
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir = None: expected the work directory"),
        (("--checkpoint=x",), "--checkpoint = ['x']: needs --config"),
        (("--config=x",), "--config = 'x': needs --checkpoint"),
        (("--checkpoint=x", "--config=missing.py"), "--config = 'missing.py': no such file"),
        (("--workdir=missing",), "--workdir = 'missing': is not the work directory"),
    ],
)
@pytest.mark.parametrize("command", ["table", "pictures"])
def test_nothing_to_open(command, arguments, message, capsys):
    assert message in refusal([command, *arguments], capsys)


def test_a_work_directory_without_checkpoint(finished, tmp_path, capsys):
    config = json.loads((finished[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command in ("table", "agreement", "robustness", "specialisation", "pictures"):
        assert "not a run's work directory" in refusal([command, f"--workdir={tmp_path}"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_missing_checkpoint(config_file, tmp_path, capsys):
    arguments = [f"--checkpoint={tmp_path / 'none'}", f"--config={config_file}"]
    assert "none: not a run's work directory" in refusal(["table", *arguments], capsys)


@pytest.mark.parametrize(
    ("command", "argument", "message"),
    [
        ("table", "--k=3", "--k = 3: "),
        ("table", "--block=encoderblock_0", "has no experts; blocks that do: encoderblock_1"),
        ("agreement", "--block=encoderblock_2", "did you mean 'encoderblock_1'"),
        ("specialisation", "--block=encoderblock_0", "has no experts"),
        ("pictures", "--block=encoderblock_0", "has no experts"),
        ("robustness", "--block=encoderblock_0", "has no experts"),
        ("pictures", "--perturbation=pgd", "is an attack"),
        ("pictures", "--split=tset", "did you mean 'test'"),
    ],
)
def test_what_a_run_cannot_give(finished, command, argument, message, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [command, f"--workdir={finished[0]}", f"--output={output}", argument]
    assert message in refusal(arguments, capsys)
    assert not output.exists()


COMMANDS = (
    *("table", "agreement", "robustness", "specialisation", "pictures", "swap", "ramp", "capacity"),
    *("information", "margins"),
)


def test_a_model_without_moe_blocks(finished, tmp_path, capsys):
    """One line each: there is no routing to analyse."""
    config = json.loads((finished[0] / "config.json").read_text())
    config["model"]["encoder"]["moe"]["layers"] = []
    path = tmp_path / "dense.py"
    path.write_text(
        "import json, ml_collections\n"
        "def get_config(_):\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(config)!r}))\n"
    )
    dense = create_model(complete(ml_collections.ConfigDict(config)).model, deterministic=True)
    params = jax.jit(dense.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    flat = flax.traverse_util.flatten_dict({"params": jax.device_get(params)}, sep="/")
    write_params(tmp_path / "dense.safetensors", flat)
    for command in COMMANDS:
        arguments = [f"--checkpoint={tmp_path / 'dense.safetensors'}", f"--config={path}"]
        line = refusal([command, *arguments, f"--output={tmp_path / 'out'}"], capsys)
        assert "dense.safetensors': has no MoE blocks" in line
    assert not (tmp_path / "out").exists()


def test_a_diverged_model_is_not_analysed(safetensors, config_file, tmp_path, capsys):
    """NaN gates choose alike everywhere, which would be an agreement of 100%."""
    params = read_params(safetensors)
    params["params/head/bias"] = params["params/head/bias"] * np.nan
    write_params(tmp_path / "nan.safetensors", params)
    arguments = [f"--checkpoint={tmp_path / 'nan.safetensors'}", f"--config={config_file}:"]
    line = refusal(["agreement", *arguments], capsys)
    assert "params/head/bias is not finite: the run diverged" in line


def test_only_some_commands_compare_runs(finished, capsys):
    twice = [f"--workdir={finished[0]}"] * 2
    assert "only one run at a time" in refusal(["agreement", *twice], capsys)
