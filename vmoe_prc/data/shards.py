"""Prepares lists of image files by many processes, and resumes where that was stopped.

The records have the order in which TFDS writes them, by the hashes of their names, and are cut into
shards, each of which is one job. A finished shard and a note on it are kept in a directory next
to the data set until all are finished; who starts again finds them there.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.splits import SplitDict, SplitInfo
from tensorflow_datasets.core.writer import ExampleWriter
from tqdm import tqdm

from vmoe_prc.data.class_folders import summarize
from vmoe_prc.data.errors import DatasetError
from vmoe_prc.data.image_lists import ImageList, Item
from vmoe_prc.data.jobs import run_jobs
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.data.remote import read_file
from vmoe_prc.runtime.cores import num_cores

# Bytes of images in a shard: what a stop loses at most, per process.
SHARD_BYTES = 256 << 20
LEFT_OUT_FILE = "left_out.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A job: the images of a shard.

    Attributes:
      path: File to write.
      items: Its images, in order.
      features: Features of the data set.
      file_format: Format of the file.
      checked: Whether images that cannot be decoded are left out.
    """

    path: str
    items: ImageList
    features: tfds.features.FeaturesDict
    file_format: tfds.core.FileFormat
    checked: bool

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the list of the images, which tells a shard of other files."""
        text = json.dumps([self.checked, self.file_format.value, *self.items])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Written(NamedTuple):
    """A finished shard.

    Attributes:
      path: The file.
      num_examples: Its records.
      num_bytes: Their bytes.
      left_out: (name, reason) of the images that it lacks.
    """

    path: str
    num_examples: int
    num_bytes: int
    left_out: Sequence[tuple[str, str]]


class ImageListBuilder(FileReaderBuilder, abc.ABC):
    """A data set with `image`, `label` and `file_name` from lists of image files.

    Attributes:
      processes: Processes that write shards; None is one for each core.
      CHECKED: Whether images that cannot be decoded are left out, logged, and listed in
        `LEFT_OUT_FILE`.
    """

    CHECKED = True
    processes: int | None = None

    @abc.abstractmethod
    def list_items(self, manual_dir: Callable[[], epath.Path]) -> Mapping[str, Iterable[Item]]:
        """Lists the images of each split.

        Args:
          manual_dir: Returns the directory of files that were downloaded by hand.

        Raises:
          DatasetError: If files cannot be used.
        """

    def list_left_out(self) -> list[tuple[str, str]]:
        """Returns (path, reason) of files that are in no list."""
        return []

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: Any = None
    ) -> None:
        del download_config
        data_dir = epath.Path(self.data_dir)
        unfinished = data_dir.parent / f".unfinished-{self.name}-{self.version}"
        unfinished.mkdir(parents=True, exist_ok=True)
        features, file_format = self.info.features, self.info.file_format
        assert isinstance(features, tfds.features.FeaturesDict) and file_format
        lists = self.list_items(lambda: dl_manager.manual_dir)
        shards = {
            split: [
                Shard(
                    os.fspath(unfinished / f"{split}-{i:05d}"),
                    part,
                    features,
                    file_format,
                    self.CHECKED,
                )
                for i, part in enumerate(_parts(ImageList(split, items)))
            ]
            for split, items in lists.items()
        }
        done = _written_by_path([x for of_split in shards.values() for x in of_split], self)
        written = {split: [done[x.path] for x in of_split] for split, of_split in shards.items()}
        left_out = [entry for x in done.values() for entry in x.left_out]
        for split, of_split in written.items():
            if not any(x.num_examples for x in of_split):
                reasons = "; ".join(summarize(left_out)) or "there are none"
                raise DatasetError(f"no image of the split {split} can be read: {reasons}")
        self.info.set_splits(SplitDict([self._moved(*entry) for entry in written.items()]))
        everything = [*self.list_left_out(), *sorted(left_out)]
        (data_dir / LEFT_OUT_FILE).write_text(json.dumps(everything, indent=1))
        for line in summarize(left_out):
            logging.warning("%s: %s", self.name, line)
        unfinished.rmtree()

    def _moved(self, split: str, written: Sequence[Written]) -> SplitInfo:
        """Moves the shards of a split to where TFDS expects them."""
        template = self._get_filename_template(split)
        kept = [x for x in written if x.num_examples]
        for i, shard in enumerate(kept):
            path = template.sharded_filepath(shard_index=i, num_shards=len(kept))
            epath.Path(shard.path).rename(path)
        return SplitInfo(
            name=split,
            shard_lengths=[x.num_examples for x in kept],
            num_bytes=sum(x.num_bytes for x in kept),
            filename_template=template,
        )


def write_shard(shard: Shard) -> Written:
    """Writes a shard and a note on it."""
    left_out, sizes = [], []
    serializer = ExampleSerializer(cast("Any", shard.features.get_serialized_info()))

    def examples() -> Iterator[tuple[str, bytes]]:
        for item in shard.items:
            try:
                image = _content(item)
                if shard.checked:
                    decode_image(image)
            except (BadExampleError, OSError) as error:
                if not shard.checked:
                    raise
                left_out.append((item.name, f"unreadable ({error})"))
                continue
            example = {"image": image, "label": item.label, "file_name": item.name}
            encoded = serializer.get_tf_example(shard.features.encode_example(example))
            # Otherwise the order of the entries is another one in each process.
            record = encoded.SerializeToString(deterministic=True)
            sizes.append(len(record))
            yield item.name, record

    # Of one name, so that what a killed process has left is written over.
    temporary = epath.Path(f"{shard.path}.writing")
    ExampleWriter(shard.file_format).write(temporary, examples())
    temporary.replace(shard.path)
    written = Written(shard.path, len(sizes), sum(sizes), left_out)
    note = {"digest": shard.digest, "written": written[1:]}
    temporary.write_text(json.dumps(note))
    temporary.replace(_note_of(shard))
    return written


def find_written(shard: Shard) -> Written | None:
    """Returns what an earlier start has written of a shard."""
    try:
        note = json.loads(_note_of(shard).read_text())
        if note["digest"] != shard.digest or not epath.Path(shard.path).exists():
            return None
        count, size, left_out = note["written"]
        return Written(shard.path, count, size, [(name, reason) for name, reason in left_out])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note_of(shard: Shard) -> epath.Path:
    return epath.Path(f"{shard.path}.json")


def _written_by_path(shards: Sequence[Shard], builder: ImageListBuilder) -> dict[str, Written]:
    """Writes the shards that are missing, with a progress bar."""
    done = {x.path: x for x in map(find_written, shards) if x}
    missing = [shard for shard in shards if shard.path not in done]
    if done:
        logging.info("%d of %d shards are finished already", len(done), len(shards))
    counts = {shard.path: len(shard.items) for shard in shards}
    hidden = not sys.stderr.isatty()
    with tqdm(total=sum(counts.values()), unit="image", desc=builder.name, disable=hidden) as bar:
        bar.update(sum(counts[path] for path in done))
        # Small data sets are written sooner than a process starts.
        size = sum(shard.items.num_bytes for shard in missing)
        processes = min(builder.processes or num_cores(), -(-size // SHARD_BYTES))
        for written in run_jobs(write_shard, missing, processes):
            done[written.path] = written
            bar.update(counts[written.path])
    return {shard.path: done[shard.path] for shard in shards}


def _parts(images: ImageList) -> list[ImageList]:
    count = min(max(1, round(images.num_bytes / SHARD_BYTES)), max(1, len(images)))
    return images.parts(count)


def _content(item: Item) -> bytes:
    if item.offset is None:
        return read_file(item.path)
    descriptor = os.open(item.path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, item.size, item.offset)
    finally:
        os.close(descriptor)
    if len(content) < item.size:
        raise OSError(f"{item.path} ends within {item.name}")
    return content
