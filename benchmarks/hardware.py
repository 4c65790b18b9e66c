r"""Compiles recipes for accelerators and writes docs/HARDWARE.md from what came out.

    python -m benchmarks.hardware                 # the page, from the results that are there
    python -m benchmarks.hardware --compile       # compiles what is missing first, one by one
    python -m benchmarks.hardware --compile --only=s32_v5e

A result is the JSON of `python -m vmoe_prc.compile` in docs/results/hardware/. Each case needs the
compiler for its target; one that is not installed is named and left out.
"""

import argparse
import json
import math
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vmoe_prc.compile.targets import CHIPS, GIB
from vmoe_prc.workdir.text_tables import markdown_lines

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "hardware"
PAGE = ROOT / "docs" / "HARDWARE.md"
HALF = "--config.model.dtype=bfloat16"
DROPLESS = "--config.model.encoder.moe.router.dispatcher.name=dropless"


BOUND = "--config.model.encoder.moe.router.dispatcher.device_capacity_factor=1.25"
TWO_BLOCKS = ("--config.model.encoder.num_layers=2", "--config.model.encoder.moe.layers=(1,)")


class Case(NamedTuple):
    """A recipe, a target, and changed fields."""

    config: str
    target: str
    flags: tuple[str, ...]


REMAT = "--config.model.encoder.remat=blocks"
GROUPS = "--config.model.encoder.moe.group_size=auto"
LARGE = "configs/imagenet21k_vmoe.py:experts=32,backbone="


def _partitions(number: int) -> str:
    return f"--config.num_expert_partitions={number}"


# On eight chips, each with its own images, classes and steps.
OTHER_RECIPES = {
    "finetune": "configs/imagenet_finetune_prc.py",
    "cifar10": "configs/cifar_prc.py:dataset=cifar10",
    "cifar100": "configs/cifar_prc.py:dataset=cifar100",
    "flowers": "configs/flowers_prc.py",
    "pets": "configs/pets_prc.py",
    "fashion_mnist": "configs/fashion_mnist_prc.py",
    "places": "configs/places_prc.py",
    "s32_vmoe": "configs/imagenet_vmoe.py",
    "finetune_vmoe": "configs/imagenet_finetune_vmoe.py",
    "cifar10_vmoe": "configs/cifar10_vmoe.py",
    "cifar100_eee": "configs/cifar100_eee.py",
}
# As many images a device on slices of 8 to 256; 16 devices are `s32_v5e`.
WEAK_SCALING = (("v5e", 8, "2x4"), ("v5e", 64, "8x8"), ("v5e", 256, "16x16"))

CASES = {
    "digits_v5e": Case("configs/digits_prc.py", "v5e:2x4", (HALF, _partitions(4))),
    "digits_v5e_2_slices": Case(
        "configs/digits_prc.py",
        "v5e:2x4:2",
        (HALF, _partitions(8), "--config.model.encoder.moe.num_experts=16", GROUPS),
    ),
    "digits_v5p": Case("configs/digits_prc.py", "v5p:2x2x2", (HALF, _partitions(4))),
    "digits_h100": Case("configs/digits_prc.py", "h100:8", (HALF, _partitions(4))),
    "s32_v5e": Case("configs/imagenet_prc.py", "v5e:4x4", (HALF, _partitions(8))),
    "s32_v5p": Case("configs/imagenet_prc.py", "v5p:2x2x4", (HALF, _partitions(8))),
    "s32_h100x8": Case("configs/imagenet_prc.py", "h100:8", (HALF, _partitions(8))),
    "s32_h100x1": Case("configs/imagenet_prc.py", "h100:1", (HALF,)),
    "s32_h100x1_dropless": Case("configs/imagenet_prc.py", "h100:1", (HALF, DROPLESS)),
    "b16_h100x8": Case("configs/imagenet21k_vmoe.py", "h100:8", (HALF, _partitions(8))),
    "l16_h100x8": Case(f"{LARGE}L/16", "h100:8", (HALF, REMAT, _partitions(8))),
    "l16_h100x8_optimizer": Case(
        f"{LARGE}L/16", "h100:8", (HALF, REMAT, _partitions(8), "--config.shard_optimizer=True")
    ),
    "l16_h100x8_kernels": Case(
        f"{LARGE}L/16", "h100:8", (HALF, REMAT, _partitions(8), "--config.shard_dense_params=True")
    ),
    **{
        f"two_blocks_{target}_{name}": Case(
            "configs/imagenet_prc.py", slice_, (HALF, _partitions(8), *TWO_BLOCKS, DROPLESS, *bound)
        )
        for target, slice_ in (("v5e", "v5e:4x4"), ("h100", "h100:8"))
        for name, bound in (("dropless", ()), ("bounded", (BOUND,)))
    },
    "h14_last5_h100x64": Case(f"{LARGE}H/14,last=5", "h100:64", (HALF, REMAT, _partitions(32))),
    "h14_h100x64": Case(f"{LARGE}H/14", "h100:64", (HALF, REMAT, _partitions(32))),
    "b16_v5p": Case("configs/imagenet21k_vmoe.py", "v5p:4x4x4", (HALF, _partitions(8))),
    "s32_v6e": Case("configs/imagenet_prc.py", "v6e:4x4", (HALF, _partitions(8))),
    "b16_v6e": Case("configs/imagenet21k_vmoe.py", "v6e:8x8", (HALF, _partitions(8))),
    "b16_v5e": Case("configs/imagenet21k_vmoe.py", "v5e:8x8", (HALF, _partitions(8))),
    "l16_v5p": Case(f"{LARGE}L/16", "v5p:4x4x4", (HALF, REMAT, _partitions(32))),
    "h14_last5_v5p": Case(f"{LARGE}H/14,last=5", "v5p:4x4x4", (HALF, REMAT, _partitions(32))),
    "h14_v5p": Case(f"{LARGE}H/14", "v5p:4x4x4", (HALF, REMAT, _partitions(32))),
    **{
        f"{name}_{target}": Case(config, slice_, (HALF, _partitions(8)))
        for name, config in OTHER_RECIPES.items()
        for target, slice_ in (("v5e", "v5e:2x4"), ("v5p", "v5p:2x2x2"), ("h100", "h100:8"))
    },
    **{
        f"soft_s16_{target}": Case("configs/soft_moe.py", slice_, (HALF, _partitions(8)))
        for target, slice_ in (("v5e", "v5e:8x8"), ("v5p", "v5p:2x2x2"), ("h100", "h100:8"))
    },
    **{
        f"s32_{target}_{number}": Case(
            "configs/imagenet_prc.py",
            f"{target}:{sides}",
            (HALF, _partitions(8), f"--config.dataset.train.batch_size={32 * number}"),
        )
        for target, number, sides in WEAK_SCALING
    },
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 1 if a case did not compile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true", help="compile cases without a result")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args(argv)
    missing = [name for name in args.only if not (RESULTS / f"{name}.json").exists()]
    failed = [name for name in missing if args.compile and not compile_case(name)]
    PAGE.write_text(page(read_results()))
    return 1 if failed else 0


def compile_case(name: str) -> bool:
    """Compiles one case in another process, and keeps its result if there is one."""
    case = CASES[name]
    command = [sys.executable, "-m", "vmoe_prc.compile", "--format=json"]
    command += [f"--config={case.config}", f"--target={case.target}", *case.flags]
    print(name, flush=True)
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        return False
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(process.stdout)
    return True


def read_results() -> dict[str, dict[str, Any]]:
    """Reads the results that are there, in the order of the cases."""
    paths = {name: RESULTS / f"{name}.json" for name in CASES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of docs/HARDWARE.md."""
    missing = ", ".join(f"`{name}`" for name in CASES if name not in results)
    return _PAGE.format(
        chips=_table([_chip_row(name) for name in CHIPS]),
        steps=_table([_step_row(name, result) for name, result in results.items()]),
        parts=_table([_part_row(name, result) for name, result in results.items()]),
        weak=_weak_scaling(results),
        commands="\n".join(_command(name) for name in results),
        missing=f"Not compiled yet: {missing}." if missing else "All cases are compiled.",
    )


def _chip_row(name: str) -> dict[str, str]:
    chip = CHIPS[name]
    return {
        "target": f"`{name}`",
        "device": chip.kind,
        "TFLOP/s, bfloat16": f"{(chip.flops('bfloat16') or 0) / 1e12:g}",
        "GiB": f"{chip.memory / GIB:.1f}",
        "memory, GB/s": f"{chip.bandwidth / 1e9:,.0f}",
        "network, GB/s": f"{chip.network / 1e9:,.0f}",
        "source": chip.source,
    }


def _step_row(name: str, result: Mapping[str, Any]) -> dict[str, str]:
    memory, bounds = result["memory"], result["bounds"]
    return {
        "case": f"`{name}`",
        "devices": result["target"],
        "images": f"{result['images']:,}",
        "parameters": f"{result['parameters'] / 1e6:,.1f} M",
        "on a device": f"{result['parameters_per_device'] / 1e6:,.1f} M",
        "peak GiB": f"{memory['peak'] / GIB:.2f}",
        "arguments": f"{memory['arguments'] / GIB:.2f}",
        "temporaries": f"{memory['temporaries'] / GIB:.2f}",
        "TFLOPs": f"{result['model_flops'] / 1e12:.3f}",
        "at least, ms": ", ".join(f"{1e3 * t:.2f} {what}" for what, t in bounds.items()),
    }


def _part_row(name: str, result: Mapping[str, Any]) -> dict[str, str]:
    collectives = (
        f"{row['instructions']} {kind} {row['bytes'] / 1e6:.1f} MB (formula "
        f"{row['formula'] / 1e6:.1f})"
        for kind, row in result["collectives"].items()
    )
    between = (
        f"{row['arrays']} {kind} {row['bytes'] / 1e6:.1f} MB between slices"
        for kind, row in result.get("between_slices", {}).items()
    )
    calls = (f"{number} {target}" for target, number in result["custom_calls"].items())
    return {
        "case": f"`{name}`",
        "collectives": "; ".join([*collectives, *between]) or "none",
        "custom calls": "; ".join(calls) or "none",
        "loops of unknown length": str(result["loops_of_unknown_length"]),
        "host calls": str(result["host_calls"]),
        "copies, MB": f"{result['bytes_copied'] / 1e6:.1f}",
        "compiler": ", ".join(f"{key} {value}" for key, value in result["versions"].items()),
    }


def _weak_scaling(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Describes what a device holds and sends as devices grow, with as many images for each."""
    names = ["s32_v5e", *(f"s32_{target}_{number}" for target, number, _ in WEAK_SCALING)]
    sizes = sorted(
        (math.prod(results[name]["mesh"].values()), name) for name in names if name in results
    )
    if len(sizes) < 2:
        return "Weak scaling is not compiled yet."
    return "\n\n".join(
        [
            "As devices grow, with 64 images for each:",
            _table([_weak_row(number, results[name]) for number, name in sizes]),
        ]
    )


def _weak_row(number: int, result: Mapping[str, Any]) -> dict[str, str]:
    kinds = result["collectives"]
    return {
        "devices of v5e": f"{number}",
        "peak MiB": f"{result['memory']['peak'] / 2**20:,.0f}",
        "arguments": f"{result['memory']['arguments'] / 2**20:,.0f}",
        "TFLOPs": f"{result['model_flops'] / 1e12:.3f}",
        "GB moved": f"{(result['bytes_accessed'] or 0) / 1e9:.1f}",
        "collectives": "; ".join(
            f"{row['instructions']} {kind} {row['bytes'] / 1e6:.1f} MB"
            for kind, row in sorted(kinds.items())
        ),
    }


def _command(name: str) -> str:
    case = CASES[name]
    flags = shlex.join(case.flags)
    return f"python -m vmoe_prc.compile --config={case.config} --target={case.target} {flags}"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return "(none)"
    return "\n".join(markdown_lines([[*rows[0]], *([*row.values()] for row in rows)]))


_PAGE = """\
# What the train steps need on TPUs and GPUs

<!-- Generated: python -m benchmarks.hardware -->

The steps on this page were **compiled** ahead of time by the compilers for these devices, with
`python -m vmoe_prc.compile`. **None was run**: no TPU or GPU was there. Memory, collectives,
kernels and loops are read in the compiled program; times are bounds from below, by the chips'
published ceilings, and say nothing about how near a run comes to them. `python -m benchmarks.gpu`
measures that where there is an NVIDIA GPU; its results are not in yet.

## Chips

Rates of one JAX device, as their makers publish them. `network` is all links of a TPU together,
and NVLink of a GPU in one direction.

{chips}

## Steps

Bytes and FLOPs of one device. `TFLOPs` counts the model's matrix products, forward and
backward. `peak` is the compiler's own account of state, batch, activations and buffers.

{steps}

The bound for `memory` uses the compiler's count of bytes where it gives one (TPUs), and otherwise
that the state is read and written once (GPUs), which is far less than a step moves.

## Programs

The formula is from [PARALLELISM.md](PARALLELISM.md), with gradients in float32, as the steps
sum them. A loop of unknown length is one whose number of turns depends on data: on a GPU it waits
for the host at each turn. The two of recipes with mixup (B/16, L/16, H/14, `s32_vmoe_*`) draw its
weights, two numbers a step, from a Dirichlet distribution by rejection (`jax.random.dirichlet`); no
expert is in a loop.

{parts}

{weak}

With several slices of TPUs the compiler takes an all-reduce over all devices apart: it is scattered
within each slice, one part of it is reduced between the slices, over the network of the data
centre, and the result is gathered within each slice, which the formula does not have.

With `shard_optimizer` (`l16_h100x8_optimizer`) the all-reduce of gradients is a reduce-scatter, and
the new parameters are gathered. On 8 H100s that takes 1.3 GiB off the peak of L/16, 5%; splitting
all kernels (`l16_h100x8_kernels`) saves more state, but none of the peak, since gathered kernels
come on top.
A bound on the choices of a device (`two_blocks_*_bounded`) makes `dropless` send 59 MB of tokens
for the block instead of 211 on 8 H100s, where buffers send 57, and 29 instead of 105 on 16 TPUs
v5e; the peak falls from 2.55 to 0.70 and from 1.88 to 0.44 GiB. For small arrays the compiler for
TPUs sums whole ones where the formula has a reduce-scatter (`places_*`).

Attention in each block is cuDNN's on GPUs, and on TPUs XLA's own: flash attention would have to pad
50 or 197 tokens to 128 or 256, and then moves 1.7 times the bytes
(`python -m benchmarks.tpu_kernels`; `benchmarks/NOTES.md` has its tables).

## Commands

```bash
{commands}
```

{missing} `python -m benchmarks.hardware --compile` compiles what is missing, one by one, and
writes this page. TPUs need `pip install "libtpu==0.0.42.*"`, NVIDIA GPUs `pip install
"jax[cuda13]"`.

## If a step does not fit

The command then ends with the largest buffers and the options that are not in use yet:

| option | what it saves | what it costs |
| --- | --- | --- |
| `config.model.dtype=bfloat16` | half of the activations | rounding |
| `config.model.encoder.remat=blocks` | all activations inside of blocks | a second forward pass |
| `config.model.encoder.remat=all_but_products` | all but products | element-wise work |
| `config.microsteps` | activations, by as many parts | gradients are summed for each part |
| `config.num_expert_partitions` | experts and their moments | all-to-all over more devices |
| `config.shard_optimizer=True` | all moments but a device's part | none; as much is sent |
| `config.shard_dense_params=True` | all other kernels and their moments | gathering them twice |
| `config.optimizer.mu_dtype=bfloat16` | a quarter of Adam's moments | rounding |
| `config.optimizer.name=adafactor` | three quarters of Adam's moments | another optimiser |
"""


if __name__ == "__main__":
    sys.exit(main())
