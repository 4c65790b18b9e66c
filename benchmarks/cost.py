"""Estimates what the recipes cost on accelerators, as a Markdown table.

    python -m benchmarks.cost --utilisation=0.3 --devices="TPU v4,NVIDIA H100 80GB HBM3"

An estimate, not a measurement: a step takes

    3 * FLOPs of a forward pass of an image * images a step / (utilisation * peak * devices)

with the FLOPs of `vmoe_prc.models.flops`, the peak of `vmoe_prc.runtime.peaks` in bfloat16, and a
utilisation that is assumed. Evaluation and checkpoints come on top, and the hosts may not be able
to decode that many images a second. Device-hours do not depend on how many devices there are.
"""

import argparse
import dataclasses
import importlib
import math
import sys
from collections.abc import Sequence

import ml_collections
import tensorflow_datasets as tfds

from vmoe_prc.data.examples import Parser
from vmoe_prc.data.ops import registry
from vmoe_prc.data.preprocess import find_spec
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.runtime.peaks import peak_flops
from vmoe_prc.workdir.text_tables import markdown_lines

RECIPES = {
    "ImageNet-1K": "imagenet_prc",
    "ImageNet-1K, 384 px": "imagenet_finetune_prc",
    "CIFAR-10": "cifar_prc:dataset=cifar10",
    "CIFAR-100": "cifar_prc:dataset=cifar100",
    "Flowers-102": "flowers_prc",
    "Pets": "pets_prc",
    "ImageNet-21k": "imagenet21k_vmoe",
}
# Images of the training splits that recipes go through by epochs, as their publishers state.
TRAIN_IMAGES = {"imagenet2012": 1_281_167, "imagenet21k": 14_197_122}
DEVICES = "TPU v4,TPU v5 lite,NVIDIA A100-SXM4-80GB,NVIDIA H100 80GB HBM3"


@dataclasses.dataclass(frozen=True)
class Work:
    """What a recipe asks for.

    Attributes:
      steps: Steps of the whole training.
      step_images: Images decoded for a step; a pair of views is one.
      step_flops: Floating-point operations of a step.
    """

    steps: int
    step_images: int
    step_flops: float


def work_of(config: ml_collections.ConfigDict) -> Work:
    """Counts the steps of a recipe and the operations of each.

    Args:
      config: The recipe's configuration.
    """
    train = config.dataset.train
    *views, height, width, _ = image_shape(train.process)
    seen = train.batch_size * math.prod(views)
    forward = forward_flops_per_image(config.model.to_dict(), (height, width))
    steps = config.train_steps or math.ceil(
        config.train_epochs * split_size(train.name, train.split) / seen
    )
    return Work(steps, train.batch_size, 3.0 * forward * seen)


def image_shape(process: str) -> tuple[int, ...]:
    """Finds out what preprocessing makes of an image.

    Args:
      process: The preprocessing string.
    """
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=1)}
    )
    ops = registry.build(process, "process")
    return find_spec(ops, Parser(features))["image"].shape


def split_size(name: str, split: str) -> int:
    """Number of images of a training split such as `train[:99%]` or `full[102400:]`.

    Args:
      name: TFDS name of the data set.
      split: The split, with one bound at most.
    """
    count = TRAIN_IMAGES[name]
    start, _, stop = split.partition("[")[2].removesuffix("]").partition(":")
    begin, end = (
        _position(bound, count, default) for bound, default in ((start, 0), (stop, count))
    )
    return end - begin


def _position(bound: str, count: int, default: int) -> int:
    if bound.endswith("%"):
        return round(count * int(bound[:-1]) / 100)
    return int(bound) if bound else default


def format_table(works: dict[str, Work], devices: Sequence[str], utilisation: float) -> str:
    """Formats the table.

    Args:
      works: What each recipe asks for, by its name.
      devices: Kinds of devices, as JAX names them.
      utilisation: Assumed share of the peak.
    """
    header = ["recipe", "steps", "TFLOPs a step", *devices]
    rows = [header]
    for name, work in works.items():
        row = [name, f"{work.steps:,}", f"{work.step_flops / 1e12:,.1f}"]
        for device in devices:
            seconds = work.step_flops / (utilisation * peak_flops(device, "bfloat16"))
            hours = seconds * work.steps / 3600
            per_second = work.step_images / seconds
            row.append(f"{rounded(seconds)} s, {rounded(hours)} h, {rounded(per_second)}/s")
        rows.append(row)
    return "\n".join(markdown_lines(rows))


def rounded(value: float) -> str:
    """Formats a positive number with two digits that count, as many as an estimate has."""
    value = float(f"{value:.1e}")
    return f"{value:,.{max(0, 1 - math.floor(math.log10(value)))}f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak, assumed")
    parser.add_argument("--devices", default=DEVICES, help="kinds as JAX names them, by commas")
    args = parser.parse_args(argv)
    devices = args.devices.split(",")
    unknown = [device for device in devices if peak_flops(device, "bfloat16") is None]
    if unknown:
        parser.error(f"--devices: no peak rate is known of {unknown[0]!r}")
    if not 0 < args.utilisation <= 1:
        parser.error(f"--utilisation = {args.utilisation}: must be above 0, and at most 1")
    works = {}
    for name, recipe in RECIPES.items():
        module, _, arguments = recipe.partition(":")
        works[name] = work_of(importlib.import_module(f"configs.{module}").get_config(arguments))
    print(f"One device at an assumed {args.utilisation:.0%} of its peak rate: time of a step,")
    print("hours of the whole training, and images to decode a second.\n")
    print(format_table(works, devices, args.utilisation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
