"""The benchmark for GPUs: its arithmetic on written traces and HLO, and a run on the CPU."""

import json
import re

import jax
import pytest

from benchmarks import gpu, gpu_training, trace
from benchmarks.roofline import flash_calls, roofline
from vmoe_prc import recipes

H100 = "NVIDIA H100 80GB HBM3"


def profile(planes):
    """Writes a profile: by plane and line, (name, start, end) in ns."""
    text = ""
    for plane, lines in planes.items():
        names = sorted({event[0] for events in lines.values() for event in events})
        text += f'planes {{ name: "{plane}"\n'
        for i, name in enumerate(names):
            text += f'event_metadata {{ key: {i + 1} value {{ id: {i + 1} name: "{name}" }} }}\n'
        for line, events in lines.items():
            text += f'lines {{ name: "{line}"\n'
            for name, start, end in events:
                times = f"offset_ps: {start * 1000} duration_ps: {(end - start) * 1000}"
                text += f"events {{ metadata_id: {names.index(name) + 1} {times} }}\n"
            text += "}\n"
        text += "}\n"
    return jax.profiler.ProfileData.from_text_proto(text)


def test_kernels_are_those_of_the_streams_of_devices():
    gemm, fusion = ("nvjet_hsh_128x256", 10, 40), ("loop_add_fusion", 30, 50)
    found = trace.kernels(
        profile(
            {
                "/host:CPU": {"python": [("train", 0, 500)]},
                "/device:GPU:0": {
                    "Stream #13(compute)": [gemm],
                    "Stream #14(compute)": [fusion],
                    "XLA Modules": [("jit_step", 0, 200)],
                },
                "/device:GPU:1": {},
            }
        )
    )
    assert [sorted(device) for device in found] == [sorted([gemm, fusion])]


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([(5, 9)], 1),
        ([(0, 4), (6, 10)], 0.8),
        ([(6, 10), (0, 4)], 0.8),  # In any order.
        ([(0, 10), (2, 3), (5, 12), (15, 20)], 17 / 20),  # Streams overlap.
        ([(0, 4), (4, 8)], 1),
    ],
)
def test_busy_share_is_that_of_the_union(intervals, share):
    assert trace.busy_share(trace.Kernel("x", *i) for i in intervals) == pytest.approx(share)


def test_seconds_by_kind():
    names = {
        "nvjet_hsh_128x256_64x4_2x1_v_bz_TNT": 30,
        "gemm_fusion_dot_12": 20,
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": 25,
        "loop_convert_fusion_3": 15,
        "input_reduce_fusion": 5,
        "MemcpyD2H": 5,
    }
    found = trace.by_kind(trace.Kernel(name, 0, time) for name, time in names.items())
    assert {kind: row["share"] for kind, row in found.items()} == {
        "matrix products": 0.5,
        "attention": 0.25,
        "element-wise and sums": 0.2,
        "copies from device": 0.05,
    }
    assert next(iter(found.values())) == {"calls": 2, "seconds": 5e-8, "share": 0.5}


def test_roofline():
    cost = {"flops": 4e12, "bytes accessed": 2e9}
    row = roofline(cost, seconds=0.01, peak_flops=1e15, bandwidth=1e12)
    assert (row["arithmetic_ms"], row["memory_ms"], row["bound"]) == (4, 2, "arithmetic")
    assert (row["FLOPs/byte"], row["ridge"]) == (2000, 1000)
    assert row["of_bound"] == pytest.approx(0.4)
    row = roofline(cost, seconds=0.01, peak_flops=1e15, bandwidth=4e11)
    assert (row["bound"], row["of_bound"]) == ("memory", pytest.approx(0.5))


def test_calls_of_flash_attention():
    line = '%c.1 = (bf16[8,3,197,64], u8[0]) custom-call(%q, %k), custom_call_target="{}", x={{}}\n'
    targets = ["__cudnn$fmhaSoftmax"] * 3 + ["__cudnn$fmhaSoftmaxBackward"] * 2 + ["__cublas$gemm"]
    hlo = "".join(line.format(target) for target in targets)
    assert flash_calls(hlo) == {"forward": 3, "backward": 2}
    assert flash_calls("fmhaSoftmax") == {"forward": 0, "backward": 0}


def test_no_gpu_is_one_line(capsys):
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == (
        "no NVIDIA GPU with known peaks in bfloat16: JAX's device is cpu\n"
    )


@pytest.mark.slow
def test_training_as_if_the_cpu_were_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setitem(recipes.SIZES, "Ti", (2, 16, 32, 2))
    known = gpu_training.ceilings_of
    monkeypatch.setattr(gpu_training, "ceilings_of", lambda _: known(H100))
    monkeypatch.setattr(trace, "DEVICE_PLANE", re.compile("/host:CPU"))
    monkeypatch.setattr(trace, "STREAM", re.compile(".*"))
    flags = "--parts=training", "--models", "ViT-Ti/32, E=2, K=2, Last 1", "--batch-sizes=8"
    flags = *flags, "--image-size=64", "--methods=gather", "--repetitions=1", "--steps=2"
    path = tmp_path / "gpu.jsonl"
    assert gpu.main([*flags, f"--output={path}"]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    speeds = {row["dispatch"]: row for row in rows if "mfu" in row}
    assert set(speeds) == {"gather", "einsum"}
    assert speeds["einsum"]["to_baseline"] == 1
    flops = [row["mfu"] / row["images_per_second"] for row in speeds.values()]
    assert flops[0] == pytest.approx(flops[1])
    peaks = [row["compiled_peak_GiB"] for row in rows if "compiled_peak_GiB" in row]
    assert peaks == sorted(peaks) and len(peaks) == 2
    traced = [row for row in rows if "busy" in row]
    assert len(traced) == 2 and all(0 < row["busy"] <= 1 for row in traced)


def test_a_part_that_fails_is_a_line_and_the_others_go_on(monkeypatch, capsys):
    def broken(args):
        yield {"found": 1}
        raise ValueError("no such kernel")

    known = gpu_training.ceilings_of
    monkeypatch.setattr(gpu_training, "ceilings_of", lambda _: known(H100))
    monkeypatch.setattr(
        gpu, "PARTS", {"first": broken, "second": lambda args: iter([{"found": 2}])}
    )
    assert gpu.main(["--parts=first,second"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"part": "first", "found": 1} in rows
    assert {"part": "first", "error": "ValueError: no such kernel"} in rows
    assert {"part": "second", "found": 2} in rows
