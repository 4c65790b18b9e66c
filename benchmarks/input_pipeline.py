"""The input pipeline, stage by stage, against TensorFlow decoding the same JPEGs and no more.

    python -m benchmarks.input_pipeline --output=workdir/input_pipeline.json

Photographs of 500x375 pixels, as JPEGs of 83 kB, are read from memory and made into batches for
a model, as in training. Targets: crops and flips at 67% of the speed of decoding alone, the whole
pipeline, with RandAugment, at 45%. Wall time
includes all cores: it is the rate of a machine that does nothing else. CPU time depends less on
other programs.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Iterator

import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_sample_images

from benchmarks import timing
from vmoe_prc.data import pipeline
from vmoe_prc.data.split import Split, open_split

HEIGHT, WIDTH, JPEG_BYTES = 375, 500, 83_000
NUM_PHOTOGRAPHS = 32
FINISH = 'value_range(-1, 1)|onehot(10)|keep("image", "labels", "view_from_image")'
CROPS = "decode|two_views(224, (5, 100), (5, 100))"
STAGES = {
    "crops": f"{CROPS}|{FINISH}",
    "crops, flips": f"{CROPS}|flip_lr|{FINISH}",
    "crops, flips, RandAugment": f"{CROPS}|flip_lr|randaug(2, 10, variant='corrected')|{FINISH}",
    "as PRC's program": (
        "decode|two_views(224, (5, 100), (5, 100), truncate=True)|flip_lr"
        f"|randaug(2, 10, variant='prc')|{FINISH}"
    ),
    "evaluation": f"decode|resize_small(256)|central_crop(224)|{FINISH}",
}
# The name of the baseline, not a preprocessing string.
DECODE = "decode"
WARM_UP = 4


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


def decoded(split: Split) -> Iterator[np.ndarray]:
    """Decodes the same records by TensorFlow, from memory; yields shapes, one batch at a time.

    Pixels go no further, so that the baseline pays for nothing else.
    """
    features = split.builder.info.features
    skip = {"image": tfds.decode.SkipDecoding()}

    def shape(record: tf.Tensor) -> tf.Tensor:
        encoded = features.deserialize_example(record, decoders=skip)["image"]
        return tf.shape(tf.io.decode_image(encoded, channels=3, expand_animations=False))

    records = tf.data.Dataset.from_tensor_slices(split.records.read(range(split.num_examples)))
    shapes = records.repeat().map(shape, num_parallel_calls=tf.data.AUTOTUNE)
    return shapes.batch(split.config.batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def measure(
    splits: dict[str, Split], num_batches: int, repetitions: int
) -> dict[str, timing.Times]:
    """Times every pipeline by turns, each in full swing and with the others at rest."""
    times = {name: timing.Times([], []) for name in splits}
    for _ in range(repetitions):
        for name, split in splits.items():
            made = decoded(split) if name == DECODE else pipeline.train_batches(split, seed=0)
            for _ in range(WARM_UP):
                next(made)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(num_batches):
                next(made)
            times[name].cpu.append(time.process_time() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
            # Ends its threads.
            del made
    return times


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


def section(data_dir: str, batch_size: int) -> dict[str, object]:
    """Makes a section of `config.dataset` for the photographs, without `process`."""
    return {
        "name": Photographs.name,
        "data_dir": data_dir,
        "manual_dir": None,
        "split": "train",
        "batch_size": batch_size,
        "shuffle_buffer": NUM_PHOTOGRAPHS,
        "shuffle_block": 1,
        "workers": 0,
        "cache": "loaded",
        "max_bad_examples": 0,
        "prefetch": "autotune",
    }


def run(args: argparse.Namespace, data_dir: str) -> None:
    """Measures every stage."""
    Photographs(data_dir=data_dir).download_and_prepare()
    shared = section(data_dir, args.batch_size)
    splits = {
        name: open_split(ml_collections.ConfigDict(shared | {"process": process}))
        for name, process in STAGES.items()
    }
    splits = {DECODE: splits["crops"], **splits}
    times = measure(splits, args.batches, args.repetitions)
    timing.report(args, rows_of(times, args.batches * args.batch_size))


def main(argv: list[str] | None = None) -> None:
    """Makes the images in a temporary directory and measures."""
    parser = timing.parser(__doc__, repetitions=9)
    parser.add_argument("--batches", type=int, default=16, help="batches of a repetition")
    parser.add_argument("--batch-size", type=int, default=64, help="source images of a batch")
    with tempfile.TemporaryDirectory() as data_dir:
        run(parser.parse_args(argv), data_dir)


if __name__ == "__main__":
    main()
