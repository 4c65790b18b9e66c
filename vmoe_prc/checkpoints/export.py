"""Writes the parameters of a run for other programs.

python -m vmoe_prc.checkpoints.export workdir/digits model.safetensors
python -m vmoe_prc.checkpoints.export --names=timm workdir/dense vit.safetensors
"""

import argparse
import sys

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.metadata import read_metadata
from vmoe_prc.checkpoints.params import FORMATS, read_params, write_params
from vmoe_prc.checkpoints.torch_vit import to_timm
from vmoe_prc.runtime.programs import add_traceback_argument, run_program


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vmoe_prc.checkpoints.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", help=FORMATS)
    parser.add_argument("target", help="FILE.safetensors, or the prefix of a V-MoE checkpoint")
    parser.add_argument(
        "--names",
        choices=("ours", "timm"),
        default="ours",
        help="names of the arrays: ours, which are V-MoE's, or those of timm's VisionTransformer, "
        "without experts, for pixels normalised by mean and std 0.5",
    )
    add_traceback_argument(parser)
    args = parser.parse_args(argv)
    return run_program(lambda: export(args.source, args.target, args.names), args.traceback)


def export(source: str, target: str, names: str = "ours") -> None:
    """Writes the parameters of a run or checkpoint to another file, and prints how many.

    The configuration and the names of the classes go with them, see `metadata`.

    Args:
      source: As of `params.read_params`.
      target: The new file, see `params.write_params`.
      names: 'ours', or 'timm' for timm's names of the dense part.

    Raises:
      CheckpointError: If the source cannot be read, or the target not be written in that way.
    """
    params, metadata = read_params(source), read_metadata(source)
    if names == "timm":
        if not target.endswith(".safetensors"):
            raise CheckpointError(f"{target}: timm's names go to FILE.safetensors")
        arrays, left_out = to_timm(params)
        params = {f"params/{name}": x for name, x in arrays.items()}
        if left_out:
            print(f"left out, as timm has no place for them: {', '.join(left_out)}")
    write_params(target, params, metadata)
    count = sum(x.size for x in params.values())
    classes = metadata.get("classes")
    named = f", {len(classes)} named classes" if classes else ""
    print(f"{target}: {len(params)} arrays, {count:,} parameters{named}")


if __name__ == "__main__":
    sys.exit(main())
