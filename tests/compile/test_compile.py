"""The command: targets, errors, and reports of steps compiled for devices that are there."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from vmoe_prc.compile import __main__ as command
from vmoe_prc.compile import hlo, program, targets
from vmoe_prc.compile.memory import allocations
from vmoe_prc.compile.targets import Chip, Target, parse_target
from vmoe_prc.config import ConfigError, complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.errors import RunError

DIGITS = "configs/digits_prc.py"
CPU = Chip("cpu", "cpu", 2**34, 1e10, 1e9, "none")


@pytest.fixture
def cpu_target(monkeypatch):
    """A target of the eight virtual CPU devices."""
    target = Target("cpu:8", CPU, (8,))
    monkeypatch.setattr(program, "parse_target", lambda _: target)
    monkeypatch.setattr(program, "devices_of", lambda _: jax.devices())
    monkeypatch.setattr(program, "_versions", lambda _: {"jax": jax.__version__})
    return target


def digits(**changes):
    return complete(override(read_config_file(DIGITS, "--config"), changes))


@pytest.mark.slow
def test_the_report_of_a_step(cpu_target):
    config = digits(num_expert_partitions=4)
    compiled, report = program.compile_step(config, "cpu:8")
    assert report.mesh == {"data": 2, "expert": 4}
    assert (report.images, report.experts_per_device) == (64, 1)
    assert report.memory.fits
    assert report.parameters_per_device < report.parameters
    exchanged = report.collectives["all-to-all"]
    assert exchanged["bytes"] == exchanged["formula"] > 0
    assert report.host_calls == 0
    assert report.compiled_flops > report.model_flops / 2
    assert "all-to-all" in compiled.as_text()
    json.dumps(report.as_dict())


@pytest.mark.slow
def test_too_little_memory_names_buffers_and_options(cpu_target, monkeypatch):
    small = dataclasses.replace(cpu_target, chip=dataclasses.replace(CPU, memory=2**20))
    monkeypatch.setattr(program, "parse_target", lambda _: small)
    with pytest.raises(program.TooLargeError) as caught:
        program.compile_step(digits(), "cpu:8")
    message = str(caught.value)
    assert "largest buffers:\n" in message and "Encoder/" in message
    assert "config.microsteps above 1" in message
    assert "config.num_expert_partitions: more" in message


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("v5:4x4", "unknown chip; allowed: v4, v5e, v5p, v6e, h100; did you mean 'v5"),
        ("v5e:4", "expected a number for each side, such as v5e:4x4"),
        ("v5e:4x4:0", "expected a number of TPU slices after the second ':'"),
        ("h100:8:2", "expected a number of TPU slices after the second ':'"),
        ("h100:0", "expected a number for each side, such as h100:4"),
    ],
)
def test_targets_that_do_not_exist(target, message):
    with pytest.raises(ConfigError, match=message):
        parse_target(target)


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    with pytest.raises(RunError, match=r'^v5e:2x2 needs .* pip install "libtpu==0.0.42.\*"$'):
        targets.devices_of(parse_target("v5e:2x2"))


def test_errors_are_one_line_with_status_2(capsys):
    assert command.main(["--config=configs/no.py", "--target=v5e:2x2"]) == 2
    assert capsys.readouterr().err.startswith("error: --config = 'configs/no.py'")


def test_a_step_that_does_not_fit_has_lines_with_status_1(monkeypatch, capsys):
    def compile_step(*_, **__):
        raise program.TooLargeError("the step does not fit\nlargest buffers:\n  1 GiB")

    monkeypatch.setattr(program, "compile_step", compile_step)
    assert command.main([f"--config={DIGITS}", "--target=v5e:2x2"]) == 1
    expected = "error: the step does not fit\nlargest buffers:\n  1 GiB\n"
    assert capsys.readouterr().err == expected


def test_allocations_are_read_from_the_message_of_the_compiler():
    message = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.
  Largest program allocations in hbm:

  1. Size: 1.50G
     Operator: op_name="jit(train_step)/jvp(Model)/Moe/mul" source_file="x.py"
     Shape: bf16[512,768]{1,0:T(8,128)(2,1)}
     Unpadded size: 1.50G
"""
    assert allocations(message) == ["1.50G bf16[512,768] mul"]


def start_compiling(*flags):
    flags = ["--format=json", "--quiet", "--config.model.dtype=bfloat16", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "vmoe_prc.compile", f"--config={DIGITS}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report_of(process):
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(output)


def compile_for_tpu(*flags):
    return report_of(start_compiling(*flags))


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='needs the compiler for TPUs: pip install "libtpu==0.0.42.*"',
)


@pytest.mark.slow
@pytest.mark.compiler
@needs_libtpu
def test_a_step_for_a_tpu_slice():
    report = compile_for_tpu("--target=v5e:2x4", "--config.num_expert_partitions=4")
    exchanged = report["collectives"]["all-to-all"]
    assert exchanged["instructions"] == 8  # Two blocks, to the experts and back, both ways.
    assert exchanged["bytes"] == exchanged["formula"]
    assert set(report["collectives"]) == {"all-to-all", "all-reduce"}
    # Gradients of a bfloat16 model are summed in float32; scalars and S are some bytes more.
    summed = report["collectives"]["all-reduce"]
    assert summed["formula"] <= summed["bytes"] < 1.01 * summed["formula"]
    assert report["loops_of_unknown_length"] == report["host_calls"] == 0
    assert report["fits"]
    assert not report["between_slices"]


@pytest.mark.slow
@pytest.mark.compiler
@needs_libtpu
def test_dropless_compiles_for_tpus_with_one_expert_a_device():
    report = compile_for_tpu(
        "--target=v5e:2x4",
        "--config.num_expert_partitions=4",
        "--config.model.encoder.moe.router.dispatcher.name=dropless",
    )
    assert report["experts_per_device"] == 1
    assert report["loops_of_unknown_length"] == report["host_calls"] == 0


@pytest.mark.slow
@pytest.mark.compiler
@needs_libtpu
def test_work_of_dropless_on_tpus_does_not_grow_with_the_experts():
    # Both at once: the compiler opens no chip that one of them would have to wait for.
    flags = ["--target=v5e:2x2", "--config.model.encoder.moe.router.dispatcher.name=dropless"]
    flags += ["--config.model.encoder.num_layers=1", "--config.model.encoder.moe.layers=(0,)"]
    processes = [
        start_compiling(*flags, f"--config.model.encoder.moe.num_experts={experts}")
        for experts in (4, 16)
    ]
    few, many = map(report_of, processes)
    assert few["model_flops"] < few["compiled_flops"]
    # A tile more for each expert, and the router.
    assert many["compiled_flops"] < 1.5 * few["compiled_flops"]


@pytest.mark.slow
@pytest.mark.compiler
@needs_libtpu
def test_a_step_for_two_tpu_slices_sends_no_tokens_between_them(tmp_path):
    report = compile_for_tpu(
        "--target=v5e:2x4:2",
        "--config.model.encoder.moe.num_experts=16",
        "--config.model.encoder.moe.group_size=auto",
        "--config.num_expert_partitions=auto",
        f"--hlo={tmp_path / 'hlo'}",
    )
    # 16 devices could have an expert each; a slice has eight.
    assert report["mesh"] == {"data": 2, "expert": 8}
    assert set(report["between_slices"]) == {"all-reduce"}
    exchanged = report["collectives"]["all-to-all"]
    assert exchanged["bytes"] == exchanged["formula"]
    # Devices are numbered within their slice.
    groups = [x.groups for x in hlo.collectives((tmp_path / "hlo").read_text())]
    assert {device for group in groups for row in group for device in row} == set(range(8))
