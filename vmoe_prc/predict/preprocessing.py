"""The preprocessing of evaluation, applied to images that belong to no data set."""

import io
import os
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vmoe_prc.arrays import Float
from vmoe_prc.config import Config, ConfigError
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.image_ops import ValueRange, rescale

# An image: a path, a PIL image, encoded bytes, or an array (H, W, 3) or (H, W) of uint8.
ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
# Modes of Pillow that a PNG holds as they are.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# Ops on labels and on the choice of entries, which images without labels do not need.
_LABEL_OPS = ("onehot", "keep", "drop", "copy")


class Preprocessing:
    """The ops that a split of a configuration applies to an image.

    Attributes:
      process: The preprocessing string.
      field: Its name in the configuration.
      calls: Name, positional and keyword arguments of each op that is applied.
      value_range: (low, high) of the pixels that the model sees.
    """

    def __init__(self, process: str, field: str = "process"):
        """Builds the ops.

        Args:
          process: Preprocessing string of a split with one view.
          field: Its name, for errors.

        Raises:
          ConfigError: If the string is wrong, or makes two views.
        """
        calls = [call for call in registry.parse(process) if call[0] not in _LABEL_OPS]
        if any(name.startswith("two_views") for name, *_ in calls):
            raise ConfigError(field, process, "expected one view of each image, not two")
        self.process, self.field, self.calls = process, field, calls
        self._ops = registry.build("|".join(_write(*call) for call in calls), field)
        ranges = [(op.low, op.high) for op in self._ops if isinstance(op, ValueRange)]
        self.value_range = ranges[-1] if ranges else (-1.0, 1.0)

    def describe(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Describes the preprocessing for other programs, in terms of JSON.

        Args:
          image_size: (height, width) of its results.
        """
        ops = [{"op": name, "args": args, **kwargs} for name, args, kwargs in self.calls]
        return {
            "process": self.process,
            "ops": ops,
            "image_size": image_size,
            "value_range": self.value_range,
            "layout": "NHWC, RGB",
        }

    def __call__(self, image: ImageLike) -> Float[np.ndarray, "H W 3"]:
        """Returns the pixels that the model sees, (H, W, 3) float32.

        Raises:
          BadExampleError: If the image cannot be read or decoded.
        """
        example = registry.apply(self._ops, {"image": _encoded(image), "label": 0})
        pixels = np.asarray(example["image"])
        if pixels.dtype == np.uint8:
            pixels = rescale(pixels, self.value_range)
        return pixels.astype(np.float32)


def evaluation_preprocessing(config: Config) -> Preprocessing:
    """Returns the preprocessing of the evaluation that a configuration describes.

    The first split with one view has it: a test split, else a validation split, else any
    other split but `train`.

    Raises:
      ConfigError: If no split but `train` has one view.
    """
    splits = config["dataset"]
    order = sorted(splits, key=lambda name: (not name.startswith("test"), name[:3] != "val", name))
    for name in order:
        process = splits[name]["process"]
        calls = [call for call, *_ in registry.parse(process)]
        if name != "train" and not any(call.startswith("two_views") for call in calls):
            return Preprocessing(process, f"config.dataset.{name}.process")
    expected = "expected a split besides train whose process gives one view of each image"
    raise ConfigError("config.dataset", tuple(splits), expected)


def _write(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    written = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
    return f"{name}({', '.join(written)})"


def _encoded(image: ImageLike) -> bytes:
    """Returns the image as a file's bytes, which `decode` of the preprocessing reads."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            return epath.Path(image).read_bytes()
        except OSError as error:
            raise registry.BadExampleError(str(error)) from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            message = f"expected uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}"
            raise registry.BadExampleError(message)
        image = Image.fromarray(image)
    if image.mode in ("I", "F"):
        raise registry.BadExampleError("pixels of 32 bits")
    if image.mode not in _PNG_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    file = io.BytesIO()
    # With its orientation, which `decode` follows where training does.
    image.save(file, format="PNG", exif=image.getexif())
    return file.getvalue()
