"""Reads damaged files: images, records, descriptions of data sets, folders and archives.

    python -m benchmarks.fuzz_files --count=1000

Each case damages a good file at random, by a seed, and reads it as training, evaluation or
`prepare` do. It may end in two ways only: one clear line that refuses the file, or data that are
right: every example that is not masked has the pixels of its label. A traceback, a case of more
than a minute, and wrong data are failures; the exit status is 1 if there are any, and the command
prints how to repeat each.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from absl import logging

from benchmarks import fuzzing
from benchmarks.fuzzing import WrongDataError, damage
from vmoe_prc.config import ConfigError
from vmoe_prc.data import pipeline
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.preparation import prepare
from vmoe_prc.data.setup import setup_tensorflow
from vmoe_prc.data.split import open_split
from vmoe_prc.errors import RunError

NUM_IMAGES, SIDE = 24, 8
KINDS = ("png", "jpeg", "gif", "bmp", "webp", "tiff")
REFUSALS = (ConfigError, RunError, DatasetError, BadExampleError)
PROCESS = 'decode|resize(8)|value_range(0, 255)|onehot(24)|keep("image", "labels")'


class Squares(tfds.core.GeneratorBasedBuilder):
    """Images of one colour each, which tells their labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=NUM_IMAGES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, object]]]:
        for label in range(NUM_IMAGES):
            yield label, {"image": square(label), "label": label}


def square(label: int) -> np.ndarray:
    """Returns the image of a label."""
    return np.full((SIDE, SIDE, 3), 10 * label, np.uint8)


def encode(image: np.ndarray, kind: str) -> bytes:
    """Encodes an image."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind)
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Files:
    """Good files, by which the cases begin.

    Attributes:
      directory: Where they are.
    """

    directory: pathlib.Path

    def prepare(self) -> None:
        """Writes them."""
        for file_format in ("tfrecord", "array_record"):
            builder = Squares(data_dir=self.directory / file_format)
            config = tfds.download.DownloadConfig(num_shards=2)
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(file_format=file_format, download_config=config)


def fuzz_image(files: Files, rng: np.random.Generator, work: pathlib.Path) -> None:
    """An image of random pixels in one of six formats."""
    kind = KINDS[rng.integers(len(KINDS))]
    whole = encode(rng.integers(0, 256, (30, 40, 3), np.uint8), kind)
    image = decode_image(damage(whole, rng), orient=True, background=255)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise WrongDataError(f"{kind}: {image.dtype} of shape {image.shape}")


def fuzz_records(files: Files, rng: np.random.Generator, work: pathlib.Path) -> None:
    """A file of records, read for evaluation and for training."""
    source = files.directory / ("tfrecord", "array_record")[rng.integers(2)]
    directory = shutil.copytree(source, work / "data")
    section = _section(directory)
    if keep_index := bool(rng.integers(2)):
        open_split(section).records.read([0])
    paths = sorted(path for path in directory.glob("**/*record-0*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    before = path.stat()
    path.write_bytes(damage(path.read_bytes(), rng))
    if keep_index:
        # As a disk that loses data, without a trace in the directory.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    _read(section, complete=False)


def fuzz_info(files: Files, rng: np.random.Generator, work: pathlib.Path) -> None:
    """A file that describes a data set."""
    source = files.directory / ("tfrecord", "array_record")[rng.integers(2)]
    directory = shutil.copytree(source, work / "data")
    paths = sorted(directory.glob("**/*.json"))
    path = paths[rng.integers(len(paths))]
    path.write_bytes(damage(path.read_bytes(), rng))
    _read(_section(directory), complete=True)


def fuzz_folder(files: Files, rng: np.random.Generator, work: pathlib.Path) -> None:
    """Class folders with damaged files and strange names among them."""
    root = work / "images"
    for label in range(NUM_IMAGES):
        kind = KINDS[label % len(KINDS)]
        path = root / f"class{label % 2}" / f"{label}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encode(square(label), kind)
        path.write_bytes(damage(content, rng) if rng.random() < 0.3 else content)
    strange = (b"\xe9t\xe9.png", b".hidden.png", b"a\nb.png", b"x" * 200 + b".png", b"%s{}.png")
    for name in strange:
        if rng.random() < 0.5:
            with open(os.fsencode(root / "class0") + b"/" + name, "wb") as file:
                file.write(encode(square(0), "png"))
    if rng.random() < 0.5:
        os.mkfifo(root / "class1" / "pipe.png")
    prepare("folder", root, work / "data")
    section = _section(work / "data", name="folder", manual_dir=str(root))
    split = open_split(section)
    count = sum(int(batch["mask"].sum()) for batch in pipeline.eval_batches(split))
    if split.class_names != ("class0", "class1") or count != split.num_examples:
        raise WrongDataError(f"classes {split.class_names}, {count} of {split.num_examples}")


def fuzz_archive(files: Files, rng: np.random.Generator, work: pathlib.Path) -> None:
    """Archives of ImageNet-21k."""
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as classes:
        for label, synset in enumerate(("n01440764", "n15075141")):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for i in range(3):
                    _add(images, f"{synset}_{i}.JPEG", encode(square(20 * label), "jpeg"))
            _add(classes, f"{synset}.tar", inner.getvalue())
    source = work / "files"
    source.mkdir()
    (source / "fall11_whole.tar").write_bytes(damage(outer.getvalue(), rng))
    builder = prepare("imagenet21k", source, work / "data", partial=True)
    if builder.info.splits["full"].num_examples != 6:
        raise WrongDataError(f"{builder.info.splits['full'].num_examples} examples of 6")


CASES: dict[str, Callable[[Files, np.random.Generator, pathlib.Path], None]] = {
    "image": fuzz_image,
    "records": fuzz_records,
    "info": fuzz_info,
    "folder": fuzz_folder,
    "archive": fuzz_archive,
}
# Cases of each kind in a row: the quick ones are more.
ROUND = ("image", "records", "image", "info", "image", "records", "image", "folder", "archive")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _section(
    data_dir: pathlib.Path, name: str = "squares", manual_dir: str | None = None
) -> ml_collections.ConfigDict:
    section = {
        "name": name,
        "split": "train",
        "process": PROCESS,
        "batch_size": 7,
        "shuffle_buffer": 1,
        "shuffle_block": 1,
        "workers": 0,
        "cache": None,
        "max_bad_examples": 100,
        "data_dir": str(data_dir),
        "manual_dir": manual_dir,
        "prefetch": 1,
        "prefetch_device": 1,
    }
    return ml_collections.ConfigDict(section)


def _read(section: ml_collections.ConfigDict, complete: bool) -> None:
    """Reads all data and checks them: colours fit labels, and each label comes once."""
    split = open_split(section)
    labels = []
    for batch in pipeline.eval_batches(split):
        labels += _check_colours(batch, batch["mask"])
    missing = sorted(set(range(NUM_IMAGES)) - set(labels))
    if len(set(labels)) != len(labels) or (complete and missing):
        raise WrongDataError(f"labels {labels}")
    batches = pipeline.train_batches(split, seed=0)
    with contextlib.closing(batches):
        for batch in itertools.islice(batches, 4):
            _check_colours(batch, np.ones(section.batch_size, bool))


def _check_colours(batch: dict[str, np.ndarray], mask: np.ndarray) -> list[int]:
    labels = np.argmax(batch["labels"], axis=-1)[mask]
    expected = [square(label) for label in labels]
    if expected and not np.array_equal(batch["image"][mask], np.stack(expected)):
        raise WrongDataError(f"pixels of {labels} are others")
    return labels.tolist()


def run(
    count: int, first_seed: int = 0, kinds: tuple[str, ...] = ROUND
) -> tuple[dict[str, collections.Counter], list[str]]:
    """Runs cases; see `fuzzing.run`."""
    with tempfile.TemporaryDirectory() as directory:
        files = Files(pathlib.Path(directory))
        files.prepare()
        cases = {name: functools.partial(case, files) for name, case in CASES.items()}
        return fuzzing.run(cases, ROUND, REFUSALS, range(first_seed, first_seed + count), kinds)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    setup_tensorflow()
    logging.set_verbosity(logging.ERROR)
    return fuzzing.main("fuzz_files", __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
