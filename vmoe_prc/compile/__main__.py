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
from typing import TYPE_CHECKING

import ml_collections

from vmoe_prc.config import ConfigError, complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.arguments import ArgumentParser

if TYPE_CHECKING:
    import jax


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        remaining, changes = split_config_flags(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(remaining)
        config = complete(override(read_config_file(args.config, "--config"), changes))
        # The devices of this machine are not asked: one might be in use.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        return _compile(args, config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _compile(args: argparse.Namespace, config: ml_collections.ConfigDict) -> int:
    from vmoe_prc.compile import hlo
    from vmoe_prc.compile.program import TooLargeError, compile_step
    from vmoe_prc.compile.report import format_report

    try:
        compiled, report = compile_step(config, args.target, progress=not args.quiet)
    except TooLargeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.hlo:
        args.hlo.write_text(hlo.text_of(compiled))
    if args.save:
        _save(compiled, args.save)
    if args.format == "json":
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print(format_report(report))
    return 0


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
