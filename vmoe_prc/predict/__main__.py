"""Classifies images with a trained model.

python -m vmoe_prc.predict WORKDIR photo.jpg more_photos/ 'holiday/*.png'
python -m vmoe_prc.predict WORKDIR --evaluate labelled_photos/

Preprocessing, classes and parameters come from the run; its data are not needed.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.arguments import ArgumentParser, at_least
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

if TYPE_CHECKING:
    import numpy as np

    from vmoe_prc.predict.model import TrainedModel


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 if an image could not be read."""
    # Images may be on both sides of the options.
    args = _parser().parse_intermixed_args(argv)
    if not args.images and not args.evaluate:
        raise ConfigError("IMAGE", None, "expected an image, a folder, a pattern, or --evaluate")
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc.config.files import read_config_file
    from vmoe_prc.predict.inputs import find_images
    from vmoe_prc.predict.model import open_model

    names = find_images([*args.images, *([args.evaluate] if args.evaluate else [])])
    config = read_config_file(args.config, "--config") if args.config else None
    model = open_model(os.path.expanduser(args.workdir), config)
    if args.evaluate:
        return _evaluate(args, model, names)
    return _predict(args, model, names)


def _predict(args: argparse.Namespace, model: "TrainedModel", names: list[str]) -> int:
    from vmoe_prc.predict.output import format_header, format_prediction, write_routing

    top_k = min(args.top_k, len(model.classes))
    if header := format_header(args.format, top_k):
        print(header)
    shown, kept, failed = [], [], []
    for batch in _batches(_readable(model, names, failed, progress=len(names) > 1), args.batch):
        probabilities = model.probabilities((pixels for _, pixels in batch), args.batch)
        for (name, pixels), row in zip(batch, probabilities, strict=True):
            print(format_prediction(args.format, name, model.top(row, top_k)), flush=True)
            if args.routing:
                shown.append(name)
                kept.append(pixels)
    if args.routing and shown:
        if not model.config.model.encoder.moe.layers:
            raise ConfigError("--routing", str(args.routing), "the model has no experts")
        for path in write_routing(args.routing, model, shown, kept):
            print(path, file=sys.stderr)
    return _report(failed, len(names))


def _evaluate(args: argparse.Namespace, model: "TrainedModel", names: list[str]) -> int:
    import numpy as np

    from vmoe_prc.predict.labelled import (
        count_trained_on,
        evaluate_labelled,
        format_confusion,
        labels_of,
    )

    by_name = dict(zip(names, labels_of(names, args.evaluate, model.classes), strict=True))
    failed: list[tuple[str, str]] = []
    read: list[str] = []

    def pixels() -> Iterator["np.ndarray"]:
        for name, image in _readable(model, names, failed, progress=True):
            read.append(name)
            yield image

    # Only the best class of each image is kept: 50,000 images by 21,843 classes take 4 GB.
    batches = model.probabilities_by_batch(pixels(), args.batch)
    best = [(batch.argmax(axis=-1), batch.max(axis=-1)) for batch in batches]
    if not best:
        raise ConfigError("--evaluate", args.evaluate, "none of its images can be read")
    labels = np.array([by_name[name] for name in read])
    predicted, probabilities = map(np.concatenate, zip(*best, strict=True))
    result = evaluate_labelled(read, labels, predicted, probabilities, model.classes)
    if trained_on := count_trained_on(read, model.config.dataset.to_dict()):
        print(
            f"warning: the model was trained on {trained_on} of these images; their accuracy says "
            "nothing of others",
            file=sys.stderr,
        )
    print(f"accuracy {result.accuracy:.2%} of {len(read)} images\n")
    percent = result.classes.assign(accuracy=result.classes["accuracy"].map("{:.1%}".format))
    print(percent.to_string(index=False))
    print(f"\n{format_confusion(result, model.classes)}")
    if len(result.mistakes):
        print("\nwrong with the highest probability")
        print(result.mistakes.to_string(index=False, float_format="{:.3f}".format))
    if args.output:
        from vmoe_prc.predict.output import write_evaluation

        for path in write_evaluation(
            args.output, model, read, labels, predicted, probabilities, result
        ):
            print(path, file=sys.stderr)
    return _report(failed, len(names))


def _readable(
    model: "TrainedModel", names: Sequence[str], failed: list[tuple[str, str]], progress: bool
) -> Iterator[tuple[str, "np.ndarray"]]:
    """Yields names and pixels of the images that can be read; adds the others to `failed`."""
    from tqdm import tqdm

    from vmoe_prc.data.ops.registry import BadExampleError

    for name in tqdm(names, unit="image", disable=not (progress and sys.stderr.isatty())):
        try:
            pixels = model.preprocessing(name)
        except BadExampleError as error:
            failed.append((name, " ".join(str(error).split())))
            continue
        yield name, pixels


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _report(failed: Sequence[tuple[str, str]], total: int) -> int:
    for name, reason in failed:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {total} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.predict",
        description=__doc__,
    )
    parser.add_argument("workdir", help="work directory of a run, or a checkpoint")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="file, folder, pattern, or - for a list on stdin"
    )
    parser.add_argument("--config", help="configuration of a checkpoint that has none with it")
    parser.add_argument(
        "--top-k", type=at_least(1), default=5, help="classes per image, 5 by default"
    )
    parser.add_argument(
        "--format", choices=("text", "csv", "jsonl"), default="text", help="text by default"
    )
    parser.add_argument(
        "--batch", type=at_least(1), default=32, help="images at a time, 32 by default"
    )
    parser.add_argument(
        "--routing", type=pathlib.Path, metavar="DIR", help="write routing.csv and routing.png"
    )
    parser.add_argument(
        "--evaluate",
        metavar="DIR",
        help="a folder with one subfolder per class: accuracy by "
        "class, confusion matrix and worst mistakes",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="DIR",
        help="with --evaluate: write its tables and figures",
    )
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main))
