"""The pictures that the page has been given, and what the models make of them."""

import collections
import dataclasses
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vmoe_prc.data.ops.decoding import check_num_pixels
from vmoe_prc.data.ops.registry import BadExampleError
from vmoe_prc.figures.interactive import expert_hex_colors, patch_choices, picture_url
from vmoe_prc.predict.model import ImageRouting, TrainedModel
from vmoe_prc.serve.changes import Changes, matches

# Larger pictures are refused before they are decoded.
MAX_PIXELS = 50_000_000
# Classes and choices of a patch that the page shows, and patches of an expert.
MAX_CLASSES, MAX_CHOICES, MAX_PATCHES = 5, 8, 24


class RefusedError(ValueError):
    """A request that cannot be answered; the text is one line for the user."""


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A picture as a model sees it, and its routing."""

    picture: UInt8[np.ndarray, "H W 3"]
    routing: Mapping[str, ImageRouting]


class Gallery:
    """Pictures in memory, the newest of them; safe for several threads."""

    def __init__(self, models: Sequence[TrainedModel], max_images: int):
        """Makes an empty gallery.

        Args:
          models: The models that are asked.
          max_images: Pictures that are kept; further ones replace the oldest.
        """
        self._models, self._max_images = tuple(models), max_images
        self._images: collections.OrderedDict[str, tuple[_Seen, ...]] = collections.OrderedDict()
        # JAX may be called by several threads; a slider must not queue up work on two cores.
        self._lock = threading.Lock()

    def describe(self) -> list[dict[str, Any]]:
        """Describes the models."""
        return [
            {
                "name": model.name,
                "grid": _grid(model),
                "blocks": _blocks(model),
                "colours": expert_hex_colors(model.num_experts),
                "classes": len(model.classes),
            }
            for model in self._models
        ]

    def add(self, encoded: bytes) -> str:
        """Keeps a picture; returns its identifier.

        Raises:
          RefusedError: If it is no picture, or too large.
        """
        try:
            check_num_pixels(encoded, MAX_PIXELS)
        except BadExampleError as error:
            raise RefusedError(f"cannot be read as a picture: {error}") from None
        with self._lock:
            seen = tuple(self._see(model, encoded) for model in self._models)
            name = secrets.token_urlsafe(9)
            self._images[name] = seen
            while len(self._images) > self._max_images:
                self._images.popitem(last=False)
        return name

    def look(self, name: str, changes: Changes) -> list[dict[str, Any]]:
        """Returns what each model makes of a picture with changes.

        Returns:
          By model: `picture`, a URL; `classes`, pairs of name and probability; `blocks`, the
          choices of the patches by block, and the patches `changed` whose match in the
          picture without changes has another first expert; `matches`, the patch of the
          changed picture for each patch of the picture, or -1.

        Raises:
          RefusedError: If there is no such picture.
        """
        with self._lock:
            pairs = zip(self._models, self._found(name), strict=True)
            return [_look(model, seen, changes) for model, seen in pairs]

    def patches(self, model: int, block: str, expert: int) -> list[dict[str, Any]]:
        """Returns the patches, of all pictures, that an expert takes with the largest gates.

        Returns:
          By patch, the largest gate first: `picture`, a URL of the patch with its
          surroundings, `image`, `patch` and `gate`.

        Raises:
          RefusedError: If there is no such model, block or expert.
        """
        if model not in range(len(self._models)):
            raise RefusedError(f"model {model}: there are {len(self._models)}")
        asked = self._models[model]
        if block not in _blocks(asked) or expert not in range(asked.num_experts):
            raise RefusedError(f"{block!r:.40}, expert {expert}: the model has no such expert")
        with self._lock:
            found = []
            for name, seen in self._images.items():
                choices, count = seen[model].routing[block], _count(asked)
                own = (choices.experts[0] == expert) & choices.kept[0]
                gates = np.where(own, choices.gates[0], 0).max(axis=-1)[-count:]
                taken = own.any(axis=-1)[-count:]
                found += [(float(gates[p]), name, int(p)) for p in np.flatnonzero(taken)]
            found = sorted(found, key=lambda item: -item[0])[:MAX_PATCHES]
            return [
                {
                    "picture": picture_url(
                        _around(self._images[name][model].picture, patch, asked)
                    ),
                    "image": name,
                    "patch": patch,
                    "gate": round(gate, 3),
                }
                for gate, name, patch in found
            ]

    def _found(self, name: str) -> tuple[_Seen, ...]:
        if name not in self._images:
            raise RefusedError("this picture is no longer kept: drop it again")
        return self._images[name]

    def _see(self, model: TrainedModel, encoded: bytes) -> _Seen:
        try:
            pixels = model.preprocessing(encoded)
        except BadExampleError as error:
            reason = " ".join(str(error).split())
            raise RefusedError(f"cannot be read as a picture: {reason:.200}") from None
        low, high = model.preprocessing.value_range
        picture = np.rint((pixels - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
        return _Seen(picture, _route(model, picture)[1])


def _route(model: TrainedModel, picture: np.ndarray) -> tuple[np.ndarray, dict[str, ImageRouting]]:
    low, high = model.preprocessing.value_range
    pixels = picture.astype(np.float32) * ((high - low) / 255) + low
    return model.probabilities_and_routing([pixels], batch_size=1)


def _look(model: TrainedModel, seen: _Seen, changes: Changes) -> dict[str, Any]:
    picture, count = changes.apply(seen.picture), _count(model)
    probabilities, routing = _route(model, picture)
    partner = matches(changes, model.image_size, model.patch_size)
    top = model.top(probabilities[0], MAX_CLASSES)
    blocks = {}
    for block, found in routing.items():
        before = seen.routing[block].experts[0, -count:, 0]
        after = found.experts[0, -count:, 0]
        moved = (partner >= 0) & (before != after[partner])
        choices = patch_choices(found.experts[0], found.gates[0], found.kept[0], count, MAX_CHOICES)
        blocks[block] = {**choices, "changed": sorted({int(p) for p in partner[moved]})}
    return {
        "picture": picture_url(picture),
        "classes": [
            [name, round(p, 4)] for name, p in zip(top.classes, top.probabilities, strict=True)
        ],
        "blocks": blocks,
        "matches": partner.tolist(),
    }


def _around(picture: np.ndarray, patch: int, model: TrainedModel) -> np.ndarray:
    """Cuts out a patch and as much again around it."""
    height, width = model.patch_size
    row, col = (
        index * side
        for index, side in zip(divmod(patch, _grid(model)[1]), (height, width), strict=True)
    )
    top, left = max(row - height // 2, 0), max(col - width // 2, 0)
    return np.ascontiguousarray(
        picture[top : row + height + height // 2, left : col + width + width // 2]
    )


def _grid(model: TrainedModel) -> list[int]:
    return [side // p for side, p in zip(model.image_size, model.patch_size, strict=True)]


def _count(model: TrainedModel) -> int:
    rows, columns = _grid(model)
    return rows * columns


def _blocks(model: TrainedModel) -> list[str]:
    return [f"encoderblock_{layer}" for layer in sorted(model.config.model.encoder.moe.layers)]
