"""Writes a trained model for other programs.

    python -m vmoe_prc.checkpoints.export workdir/digits model.safetensors
    python -m vmoe_prc.checkpoints.export --names=timm workdir/dense vit.safetensors
    python -m vmoe_prc.checkpoints.export workdir/digits digits/ --format=folder
    python -m vmoe_prc.checkpoints.export workdir/digits model.onnx

FORMAT follows from the suffix of TARGET, unless it is given:
  params       FILE.safetensors, or the prefix of a V-MoE checkpoint: parameters,
               configuration and classes
  folder       parameters, configuration, classes, preprocessing and a model card
  stablehlo    FILE.stablehlo: a program for CPU, CUDA and TPU, for jax.export
  onnx         FILE.onnx, for onnxruntime
  saved_model  a folder that decodes and classifies images, for TensorFlow Serving
"""

import argparse
import os
import sys

from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

PARAMS = "params"
FORMATS = (PARAMS, "folder", "stablehlo", "onnx", "saved_model")
_SUFFIXES = {".stablehlo": "stablehlo", ".onnx": "onnx"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(argv)
    return run_program(lambda: _run(args), args.traceback)


def _run(args: argparse.Namespace) -> None:
    form = args.format or _SUFFIXES.get(os.path.splitext(args.target)[1], PARAMS)
    # Imported here so that --help need not wait for JAX.
    from vmoe_prc.config import ConfigError
    from vmoe_prc.config.files import read_config_file
    from vmoe_prc.config.registry import EXPORTS

    config = read_config_file(args.config, "--config") if args.config else None
    if form == PARAMS:
        if config or args.license:
            raise ConfigError("--format", form, "takes neither --config nor --license")
        export(args.source, args.target, args.names)
        return
    if args.names != "ours":
        raise ConfigError("--names", args.names, f"is of --format={PARAMS}, not of {form}")
    from vmoe_prc.checkpoints.request import ExportRequest

    request = ExportRequest(
        os.path.expanduser(args.source), os.path.expanduser(args.target), config, args.license
    )
    for path in EXPORTS[form](request):
        print(path)


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
    from vmoe_prc.checkpoints.manager import CheckpointError
    from vmoe_prc.checkpoints.metadata import read_metadata
    from vmoe_prc.checkpoints.params import read_params, write_params
    from vmoe_prc.checkpoints.torch_vit import to_timm

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


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.checkpoints.export",
        description=__doc__,
    )
    parser.add_argument(
        "source",
        help="a run's work directory, an exported folder, the prefix of a V-MoE checkpoint, a "
        ".safetensors or .npz file, or a folder of timm or Hugging Face",
    )
    parser.add_argument("target", help="the file, folder or prefix to write")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of the target")
    parser.add_argument(
        "--names",
        choices=("ours", "timm"),
        default="ours",
        help="params: names of the arrays: ours, which are V-MoE's, or the names of timm's "
        "VisionTransformer, without experts, for pixels normalised by mean and std 0.5",
    )
    parser.add_argument("--config", help="configuration of a checkpoint that has none with it")
    parser.add_argument(
        "--license", help="folder: licence of the parameters for the model card, such as apache-2.0"
    )
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
