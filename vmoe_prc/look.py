"""Shows the data of a configuration before training.

    python -m vmoe_prc.look --config=configs/photos_prc.py:dir=photos --output=look.png

Prints the images of each split by class, what was left out and why, and how often training sees an
image. `--output` draws images as training sees them; of two views, matched patches have the same
colour. `--check` reads every image and names those that cannot be decoded.
"""

import argparse
import collections
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import ml_collections

from vmoe_prc.config import ConfigError, complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.config.flags import split_config_flags
from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.runtime.programs import add_traceback_argument, run_program, setup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmoe_prc.data.split import Split

# Labels of larger splits are counted in their first images only: reading takes 0.1 ms each.
MOST_COUNTED = 50_000
# Classes that have a line each.
MOST_CLASSES = 60
_CHUNK = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 if `--check` finds bad images."""
    remaining, changes = split_config_flags(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(remaining)
    config = read_config_file(args.config, "--config", prepare=True)
    config = complete(override(config, changes))
    setup()
    # Imported here so that --help need not wait for JAX and TensorFlow.
    from vmoe_prc.data.split import open_splits
    from vmoe_prc.runtime.logs import setup_logging

    setup_logging(quiet=True)  # The tables show what INFO would log.
    splits = open_splits(dict(config.dataset.items()))
    print("\n".join(describe(config, splits)))
    if args.output:
        from vmoe_prc.figures.panels import save_figure

        save_figure(draw_samples(config, splits["train"], args.images), args.output)
        print(f"\npicture: {args.output}")
    if not args.check:
        return 0
    bad = [line for split in _distinct(splits).values() for line in bad_images(split)]
    print("\n".join(["", f"{len(bad)} images cannot be used", *bad]))
    return 1 if bad else 0


def describe(config: ml_collections.ConfigDict, splits: Mapping[str, "Split"]) -> list[str]:
    """Returns lines on the splits of a configuration: classes, counts, and what is left out.

    Args:
      config: The completed configuration.
      splits: Its splits by name, `train` among them.
    """
    from vmoe_prc.data.class_folders import summarize

    train, distinct = splits["train"], _distinct(splits)
    lines = [f"{train.config.name}: {train.builder.data_path}"]
    lines += _table({name: count_classes(split) for name, split in distinct.items()}, distinct)
    lines += summarize(getattr(train.builder, "left_out", []))
    size = train.config.batch_size
    views = 2 if "view_from_image" in train.spec else 1
    epoch = train.num_examples / (size * views)
    steps = config.train_steps or math.ceil(config.train_epochs * epoch)
    lines.append(
        f"training: {steps:,} steps of {size:,} images, "
        f"{steps * size / train.num_examples:,.1f} times each image"
    )
    if views := [name for name, split in splits.items() if "view_from_image" in split.spec]:
        lines.append(f"two views of each image: {', '.join(views)}")
    return lines


def count_classes(split: "Split") -> collections.Counter[str]:
    """Counts the images of each class, in the first `MOST_COUNTED` of a split.

    Returns:
      Numbers by name of the class; empty where images have no class.
    """
    import tensorflow_datasets as tfds

    from vmoe_prc.data.examples import Parser, features_of
    from vmoe_prc.data.ops.registry import BadExampleError

    features = features_of(split.builder)
    keys = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    counts: collections.Counter[str] = collections.Counter()
    if not keys:
        return counts
    parse, names = Parser(features), split.class_names
    for _, records in _chunks(split, min(split.num_examples, MOST_COUNTED)):
        for record in records:
            try:
                label = int(parse(record)[keys[0]])
            except BadExampleError:
                counts["unreadable"] += 1
                continue
            counts[names[label] if names and label >= 0 else str(label)] += 1
    return counts


def bad_images(split: "Split") -> list[str]:
    """Returns a line for each image of a split that its preprocessing refuses."""
    import numpy as np

    from vmoe_prc.data.ops.registry import BadExampleError
    from vmoe_prc.data.pipeline import EVALUATION_SEED

    preprocess, found = split.preprocess(EVALUATION_SEED), []
    for numbers, records in _chunks(split, split.num_examples):
        good, _ = preprocess.rows(numbers, records)
        for i in np.flatnonzero(~good):
            try:
                preprocess.one(number := numbers[i], records[i])
            except BadExampleError as error:
                reason = " ".join(str(error).split())
                found.append(f"{split.name}, {split.records.place(number)}: {reason}")
    return found


def draw_samples(config: ml_collections.ConfigDict, split: "Split", images: int) -> "Figure":
    """Draws the first images of training, as the model sees them.

    Args:
      config: The completed configuration.
      split: Its split `train`.
      images: How many images to draw.

    Raises:
      ConfigError: If none of them can be read.
    """
    import numpy as np

    from vmoe_prc.alignment import match_patches, view1_from_view0
    from vmoe_prc.data.order import Order
    from vmoe_prc.figures.matched_views import images_figure, matched_views_figure
    from vmoe_prc.figures.panels import class_titles, to_display

    options = split.config
    order = Order(
        split.num_examples, config.seed, bool(options.shuffle_buffer), options.shuffle_block
    )
    numbers = order.numbers(np.arange(min(images, split.num_examples))).tolist()
    good, batch = split.preprocess(config.seed).rows(
        range(len(numbers)), split.records.read(numbers)
    )
    if not good.any():
        raise ConfigError("config.dataset.train", split.name, "its first images cannot be read")
    batch = {key: x[good] for key, x in batch.items()}
    pixels = batch["image"]
    low_high = (0, 255) if pixels.dtype == np.uint8 else split.value_range or (-1.0, 1.0)
    pixels = to_display(pixels.astype(np.float32), low_high)
    labels = [""] * len(pixels)
    if "labels" in batch:
        rows = batch["labels"].reshape(len(pixels), -1, batch["labels"].shape[-1])[:, 0]
        classes = np.where(rows.any(axis=-1), rows.argmax(axis=-1), -1)
        labels = class_titles(classes, split.class_names)
    if "view_from_image" not in batch:
        text = "after preprocessing, as the model sees them"
        return images_figure(pixels, labels, "Images of training", text)
    patch_size = tuple(config.model.patch_size)
    maps = view1_from_view0(batch["view_from_image"])
    pairs = match_patches(maps, pixels.shape[2:4], patch_size, class_token=False)
    return matched_views_figure(pixels, pairs, patch_size, labels)


def _distinct(splits: Mapping[str, "Split"]) -> dict[str, "Split"]:
    """Returns splits by data set and split; sections that read the same are there once."""
    names = {split.config.name for split in splits.values()}
    found: dict[str, Split] = {}
    for split in (splits["train"], *splits.values()):
        found.setdefault(split.config.split if len(names) == 1 else split.name, split)
    return found


def _table(
    counts: Mapping[str, collections.Counter[str]], splits: Mapping[str, "Split"]
) -> list[str]:
    from vmoe_prc.workdir.text_tables import aligned_lines

    classes = sorted({name for by_class in counts.values() for name in by_class})
    declared = [x for split in splits.values() for x in split.class_names or ()]
    order = {name: i for i, name in enumerate(dict.fromkeys(declared))}
    classes.sort(key=lambda name: order.get(name, len(order)))
    rows = [["class", *counts]]
    shown = classes[:MOST_CLASSES]
    rows += [[name, *(f"{by_class[name]:,}" for by_class in counts.values())] for name in shown]
    if len(classes) > len(shown):
        rest = classes[len(shown) :]
        sums = (sum(by_class[name] for name in rest) for by_class in counts.values())
        rows.append([f"{len(rest):,} more classes", *(f"{count:,}" for count in sums)])
    rows.append(["all", *(f"{split.num_examples:,}" for split in splits.values())])
    lines = aligned_lines(rows, str.rjust, first=str.ljust)
    for name, split in splits.items():
        if counts[name] and split.num_examples > MOST_COUNTED:
            lines.append(f"{name}: classes of the first {MOST_COUNTED:,} images")
        missing = [x for x in split.class_names or () if counts[name] and not counts[name][x]]
        if missing and split.num_examples <= MOST_COUNTED:
            more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
            lines.append(f"no {name} image of {', '.join(missing[:5])}{more}")
    return lines


def _chunks(split: "Split", count: int) -> Iterator[tuple[range, list[bytes]]]:
    for start in range(0, count, _CHUNK):
        numbers = range(start, min(start + _CHUNK, count))
        yield numbers, split.records.read(numbers)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m vmoe_prc.look",
        description=__doc__,
        epilog="Any field of the configuration can be set: --config.dataset.train.batch_size=16",
    )
    parser.add_argument("--config", required=True, help="the recipe, as for vmoe_prc.main")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FILE.png", help="draw images of training"
    )
    parser.add_argument("--images", type=int, default=6, help="images to draw, 6 by default")
    parser.add_argument("--check", action="store_true", help="decode every image")
    add_traceback_argument(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main))
