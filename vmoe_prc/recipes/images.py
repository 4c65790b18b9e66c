"""The images that a recipe is for: class folders, or a data set by its name."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import ml_collections

from vmoe_prc.config import ConfigError, NotPreparedError
from vmoe_prc.data.class_folders import scan_class_folders

if TYPE_CHECKING:
    from vmoe_prc.data.builders import Builder

FOLDER = "folder"
# Arguments of a recipe whose images the user chooses, see `find_images`.
IMAGE_ARGUMENTS = {"dataset": FOLDER, "dir": "", "data_dir": ""}
# The part of a data set with one split that is for training, in percent.
_TRAINING = 90


@dataclasses.dataclass(frozen=True)
class Images:
    """Images with classes.

    Attributes:
      num_classes: Number of classes.
      sizes: Number of images for `train` and `test`.
      splits: Their splits in the data set.
      place: `name`, `data_dir` and `manual_dir` of their sections of `config.dataset`.
    """

    num_classes: int
    sizes: Mapping[str, int]
    splits: Mapping[str, str]
    place: Mapping[str, str | None]


def find_images(arguments: ml_collections.ConfigDict) -> Images:
    """Finds the images that the arguments of a recipe name.

    Args:
      arguments: `dataset`, the name of a data set; `dir`, the directory of its files; and
        `data_dir`, the directory of prepared data sets.

    Raises:
      ConfigError: If there are none.
      NotPreparedError: If the data set is no folder, and is not prepared.
    """
    place = {
        "name": arguments.dataset,
        "manual_dir": arguments.dir or None,
        "data_dir": arguments.data_dir or None,
    }
    if arguments.dataset != FOLDER:
        return _images_of_builder(place)
    try:
        # The folder is prepared when the training begins.
        folders = scan_class_folders(arguments.dir or "PATH")
    except ValueError as error:
        raise ConfigError("config argument 'dir'", arguments.dir, str(error)) from None
    sizes = {split: len(folders.splits[split]) for split in ("train", "test")}
    return Images(len(folders.classes), sizes, {split: split for split in sizes}, place)


def _images_of_builder(place: Mapping[str, str | None]) -> Images:
    # Imported here: a folder needs no TensorFlow yet.
    from vmoe_prc.data.split import class_names_of

    builder = _open_builder(place, prepare=False)
    field, name = "config argument 'dataset'", place["name"]
    classes = class_names_of(builder)
    if classes is None:
        raise ConfigError(field, name, "expected a data set whose labels are classes")
    known = builder.info.splits
    if "train" in known and ("test" in known or "validation" in known):
        splits = {"train": "train", "test": "test" if "test" in known else "validation"}
    else:
        only = "train" if "train" in known else next(iter(known))
        splits = {"train": f"{only}[:{_TRAINING}%]", "test": f"{only}[{_TRAINING}%:]"}
    sizes = {key: known[split].num_examples for key, split in splits.items()}
    if not all(sizes.values()):
        raise ConfigError(field, name, f"has too few images: {sizes}")
    return Images(len(classes), sizes, splits, place)


def _open_builder(place: Mapping[str, str | None], *, prepare: bool) -> "Builder":
    """Opens the data set; errors name the arguments."""
    from vmoe_prc.data.builders import open_builder
    from vmoe_prc.data.setup import setup_tensorflow

    setup_tensorflow()
    section = ml_collections.ConfigDict(place)
    try:
        return open_builder(section, "config.dataset.train", prepare=prepare)
    except ConfigError as error:
        names = {"name": "dataset", "manual_dir": "dir", "data_dir": "data_dir"}
        argument = names.get(error.field.rpartition(".")[2], "dataset")
        field = f"config argument {argument!r}"
        expected = error.expected.replace("config.dataset.train.data_dir", "argument data_dir")
        if isinstance(error, NotPreparedError):
            able = functools.partial(_open_builder, place, prepare=True)
            raise NotPreparedError(field, error.value, expected, able) from None
        raise ConfigError(field, error.value, expected, error.suggestion) from error.__cause__
