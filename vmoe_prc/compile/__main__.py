"""Compiles the train step of a configuration for accelerators that are not there.

    python -m vmoe_prc.compile --config=configs/imagenet_prc.py --target=v5e:4x4

Needs neither the data nor the devices, but the compiler: `pip install "libtpu==0.0.42.*"` for
TPUs, `pip install "jax[cuda13]"` for NVIDIA GPUs. Prints the memory of a device, FLOPs,
collectives, kernels, loops, copies, and the least time that a step can take. Exit status 1: it
does not fit; 2: the command or its configuration is wrong.
"""

import argparse
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from vmoe_prc.config import complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

if TYPE_CHECKING:
    import jax


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""

    def program() -> None:
        remaining, changes = split_config_flags(sys.argv[1:] if argv is None else argv)
        _compile(_parser().parse_args(remaining), changes)

    return run_program(program)


def _compile(args: argparse.Namespace, changes: dict[str, Any]) -> None:
    config = complete(override(read_config_file(args.config, "--config"), changes))
    # The devices of this machine are not asked: one might be in use.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from vmoe_prc.compile import hlo
    from vmoe_prc.compile.program import compile_step
    from vmoe_prc.compile.report import format_report

    compiled, report = compile_step(config, args.target, progress=not args.quiet)
    if args.hlo:
        args.hlo.write_text(hlo.text_of(compiled))
    if args.save:
        _save(compiled, args.save)
    if args.format == "json":
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print(format_report(report))


def _save(compiled: "jax.stages.Compiled", path: pathlib.Path) -> None:
    from jax.experimental import serialize_executable

    try:
        payload, _, _ = serialize_executable.serialize(compiled)
    except Exception as error:
        # What can be serialised depends on the compiler's plugin.
        message = " ".join(str(error).split())[:200]
        raise RunError(
            f"--save: JAX cannot serialise a program for this target: {message}"
        ) from error
    path.write_bytes(payload)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.compile",
        description=__doc__,
        epilog="Any field of the configuration can be set: --config.num_expert_partitions=8",
    )
    parser.add_argument("--config", required=True, help="the recipe, as for vmoe_prc.main")
    parser.add_argument(
        "--target",
        required=True,
        help="h100:GPUS, v4:AxBxC, v5e:AxB, v5p:AxBxC or v6e:AxB: the sides of a TPU slice; "
        "v5e:AxB:N of N slices",
    )
    parser.add_argument(
        "--format", choices=["table", "json"], default="table", help="table by default"
    )
    parser.add_argument("--hlo", type=pathlib.Path, help="file for the optimised program as text")
    parser.add_argument(
        "--save", type=pathlib.Path, help="file for the compiled program, where JAX can write it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
