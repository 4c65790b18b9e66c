"""The input pipeline, stage by stage, against nothing but decoding the same JPEGs.

    python -m benchmarks.input_pipeline --output=workdir/input_pipeline.json

Photographs of 500x375 pixels, as JPEGs of 83 kB, are read from memory and made into batches for
a model, as in training. Targets: crops and flips at 65% of the speed of decoding alone, the whole
pipeline, with RandAugment, at 40%. Wall time counts all cores, so it says how fast a machine can
read that does nothing else; the CPU time beside it depends less on what else the machine does.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_sample_images

from benchmarks import timing
from vmoe_prc.data import pipeline, source

HEIGHT, WIDTH, JPEG_BYTES = 375, 500, 83_000
NUM_PHOTOGRAPHS = 32
FINISH = 'value_range(-1, 1)|onehot(10)|keep("image", "labels", "view_from_image")'
CROPS = "decode|two_views(224, (5, 100), (5, 100))"
STAGES = {
    "crops": f"{CROPS}|{FINISH}",
    "crops, flips": f"{CROPS}|flip_lr|{FINISH}",
    "crops, flips, RandAugment": f"{CROPS}|flip_lr|randaug(2, 10)|{FINISH}",
    "evaluation": f"decode|resize_small(256)|central_crop(224)|{FINISH}",
}
DECODE = "decode"


class Photographs(tfds.core.GeneratorBasedBuilder):
    """Parts of scikit-learn's two photographs, with noise, at a quality that makes 83 kB."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
        rng = np.random.default_rng(0)
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.data_dir))
        for i in range(NUM_PHOTOGRAPHS):
            path = directory / f"{i}.jpeg"
            path.write_bytes(encode(photograph(rng)))
            yield i, {"image": path, "label": i % 10}


def photograph(rng: np.random.Generator) -> np.ndarray:
    """Cuts a part out of a photograph, (375, 500, 3) uint8."""
    images = load_sample_images().images
    picture = images[rng.integers(len(images))]
    scale = rng.uniform(0.7, 1)
    height, width = int(picture.shape[0] * scale), int(picture.shape[1] * scale)
    row = rng.integers(picture.shape[0] - height + 1)
    col = rng.integers(picture.shape[1] - width + 1)
    part = picture[row : row + height, col : col + width]
    resized = tf.image.resize(part, (HEIGHT, WIDTH), method="bicubic", antialias=True).numpy()
    # The grain that a camera gives.
    noisy = resized + rng.normal(0, 4, resized.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def encode(image: np.ndarray) -> bytes:
    """Encodes at the highest quality that makes no more than 83 kB."""
    encoded = (tf.io.encode_jpeg(image, quality=q).numpy() for q in range(98, 40, -1))
    return next(data for data in encoded if len(data) <= JPEG_BYTES)


def reader(config: ml_collections.ConfigDict, count: int) -> Callable[[], None]:
    """Makes a function that reads and preprocesses `count` images, in batches."""
    split = source.examples(config)
    rows = split.shuffled_from(0, 0, config.shuffle_buffer).take(count).enumerate()
    examples = pipeline.preprocess(config, split, rows, 0)
    if config.process == DECODE:
        # Images go no further, so that the baseline pays for nothing but decoding.
        examples = examples.map(lambda example: {"shape": tf.shape(example["image"])})
    batches = examples.batch(config.batch_size).prefetch(tf.data.AUTOTUNE)

    def read() -> None:
        for _ in batches.as_numpy_iterator():
            pass

    return read


def rows_of(times: dict[str, timing.Times], count: int) -> list[dict[str, object]]:
    """Turns seconds into images a second and shares of the speed of decoding."""
    return [
        {
            "stage": name,
            "images/s": count / row["seconds"],
            "% of decoding": 100 / row["ratio"],
            "low": 100 / row["high"],
            "high": 100 / row["low"],
            "CPU µs/image": 1e6 * row["cpu_seconds"] / count,
            "% of decoding, CPU": 100 / row["cpu_ratio"],
        }
        for name, row in timing.compare(times, DECODE).items()
    ]


def run(args: argparse.Namespace, data_dir: str) -> None:
    """Measures every stage."""
    builder = Photographs(data_dir=data_dir)
    builder.download_and_prepare()
    readers = {
        name: reader(
            ml_collections.ConfigDict(
                {
                    "name": builder.name,
                    "data_dir": data_dir,
                    "manual_dir": None,
                    "split": "train",
                    "process": process,
                    "batch_size": args.batch_size,
                    "shuffle_buffer": NUM_PHOTOGRAPHS,
                    "cache": "loaded",
                }
            ),
            args.images,
        )
        for name, process in {DECODE: DECODE, **STAGES}.items()
    }
    timing.report(args, rows_of(timing.take_turns(readers, args.repetitions), args.images))


def main() -> None:
    """Makes the images in a temporary directory and measures."""
    parser = timing.parser(__doc__, repetitions=9)
    parser.add_argument("--images", type=int, default=768, help="source images of a repetition")
    parser.add_argument("--batch_size", type=int, default=64, help="source images of a batch")
    with tempfile.TemporaryDirectory() as data_dir:
        run(parser.parse_args(), data_dir)


if __name__ == "__main__":
    main()
