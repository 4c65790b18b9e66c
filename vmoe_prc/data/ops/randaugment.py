"""RandAugment (arXiv 1909.13719) that keeps track of where each pixel goes.

Ops, strengths and values are as in V-MoE's `randaug(num_layers, magnitude)`: every layer picks
one of 16 ops at random and applies it at the same magnitude, in units of 10. PRC's program picks
the identity as often as any op; both have three ops with errors, see `photometric`. In both the ops
follow each other, and a geometric op takes the nearest pixel; beyond the edge is gray in V-MoE's,
the mirrored view in PRC's, whose comments say gray.

In the corrected variant geometric ops are not applied one by one: their matrices are
multiplied into one map, by which the view is interpolated once. Then follow, in the order of the
layers, the photometric ops, and gray for the area that a geometric op uncovers or a cutout covers,
so that later ops change this gray, too. A photometric op therefore sees pixels that later geometric
ops have moved already. For an op on single pixels this makes no difference, and for one on
neighbours next to none; an op of `GLOBAL`, which uses the histogram or mean of the whole view, gets
the view as it was at its layer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from jaxtyping import Float64, Int, UInt8

from vmoe_prc.config.registry import OPS
from vmoe_prc.data.ops import affine
from vmoe_prc.data.ops.nearest import GRAY, move_nearest
from vmoe_prc.data.ops.photometric import CORRECTED, GLOBAL, PHOTOMETRIC, View
from vmoe_prc.data.ops.registry import Example, Op
from vmoe_prc.data.ops.resample import square, uncovered
from vmoe_prc.data.ops.views import Resampled, Views, views_of

MAX_ROTATION = math.radians(30)
MAX_SHEAR = 0.3
# Larger numbers are mistakes, and would overflow OpenCV's coordinates.
MAX_LAYERS, MAX_STRENGTH = 64, 10_000

# (level, height, width, pixels of a translation) -> new_from_old; the sign of level is random.
GEOMETRIC: Mapping[str, Callable[..., affine.Matrix]] = {
    "rotate": lambda level, h, w, _: affine.rotation_matrix(level * MAX_ROTATION, h, w),
    "shear_x": lambda level, h, w, _: affine.shear_matrix(0.0, level * MAX_SHEAR),
    "shear_y": lambda level, h, w, _: affine.shear_matrix(level * MAX_SHEAR, 0.0),
    "translate_x": lambda level, h, w, most: affine.translation_matrix(0.0, level * most),
    "translate_y": lambda level, h, w, most: affine.translation_matrix(level * most, 0.0),
}
CUTOUT = "cutout"
OP_NAMES = (*GEOMETRIC, *PHOTOMETRIC, CUTOUT)


@dataclasses.dataclass(frozen=True)
class Variant:
    """Which RandAugment.

    Attributes:
      photometric: Ops on pixel values by name.
      identity: Whether the identity is one more choice.
      border: See `move_nearest`, which moves pixels op by op; None interpolates once.
    """

    photometric: Mapping[str, Callable[..., View]]
    identity: bool = False
    border: str | None = None


VARIANTS: Mapping[str, Variant] = {
    "vmoe": Variant(PHOTOMETRIC, border="constant"),
    "prc": Variant(PHOTOMETRIC, identity=True, border="reflect"),
    "corrected": Variant(CORRECTED),
}


@OPS.register()
def randaug(
    num_layers: int = 2,
    magnitude: float = 10,
    translate_const: float = 100,
    cutout_const: float = 40,
    variant: str = "vmoe",
) -> Op:
    """Applies RandAugment to each view.

    Args:
      num_layers: Number of ops in a row, at most `MAX_LAYERS`.
      magnitude: Strength of all ops, usually from 0 to 30.
      translate_const: Pixels that a translation of magnitude 10 moves by.
      cutout_const: Half the side, in pixels, of the square of a cutout of magnitude 10.
      variant: 'vmoe', the ops of V-MoE's program; 'prc', the ops of PRC's program, with the
        identity and mirrored edges; 'corrected', V-MoE's ops without the errors of contrast,
        solarize and posterize, and interpolated once.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant = {variant!r} must be one of {', '.join(VARIANTS)}")
    if num_layers < 0 or magnitude < 0:
        raise ValueError(f"num_layers = {num_layers} and magnitude = {magnitude} must be >= 0")
    if num_layers > MAX_LAYERS:
        raise ValueError(f"num_layers = {num_layers} must be at most {MAX_LAYERS}")
    if max(magnitude, abs(translate_const), abs(cutout_const)) > MAX_STRENGTH:
        raise ValueError(f"numbers must be at most {MAX_STRENGTH:,}")
    level, kind = magnitude / 10, VARIANTS[variant]
    paint = functools.partial(
        paint_layers if kind.border is None else functools.partial(paint_in_turn, kind.border),
        level=level,
        cutout_half=int(level * cutout_const),
        photometric=kind.photometric,
    )
    # The identity is a choice beyond the names.
    num_choices = len(OP_NAMES) + kind.identity

    def op(example: Example, rng: np.random.Generator) -> Example:
        if not num_layers:
            return example
        views = _of_bytes(views_of(example))
        # Three uniform draws per layer: the op, and two that mean what the op needs. The position
        # of a cutout takes draws 1 and 2; the sign of a geometric op takes draw 1. No op needs
        # both, and the number of draws does not depend on the ops chosen.
        draws = rng.random((*views.axes, num_layers, 3))
        choices = (draws[..., 0] * num_choices).astype(int)
        positive, positions = (draws[..., 1] < 0.5).astype(int), draws[..., 1:]
        indexed = kind.border is not None
        moves = _moves(OP_NAMES, views.size, level, translate_const, indexed)[positive, choices]
        view_from_canvas = _products(moves)
        # One (choices, matrices, positions) per view, for one view or for two.
        layers = zip(
            choices.reshape(-1, num_layers),
            (moves if indexed else view_from_canvas).reshape(-1, num_layers, 3, 3),
            positions.reshape(-1, num_layers, 2),
            strict=True,
        )
        paints = [functools.partial(paint, *view) for view in layers]
        return {
            **example,
            "image": dataclasses.replace(views, paints=paints),
            "view_from_image": view_from_canvas[..., 0, :, :] @ views.view_from_image,
        }

    return op


def paint_layers(
    choices: Int[np.ndarray, "layers"],
    view_from_canvas: Float64[np.ndarray, "layers 3 3"],
    positions: Float64[np.ndarray, "layers 2"],
    resampled: Resampled,
    *,
    level: float,
    cutout_half: int,
    photometric: Mapping[str, Callable[..., View]] = PHOTOMETRIC,
) -> UInt8[np.ndarray, "h w 3"]:
    """Makes the pixels of a view.

    Args:
      choices: Index in `OP_NAMES` of the op of each layer; a larger one is the identity.
      view_from_canvas: Per layer, the map of its geometric op and all later ones: from the canvas,
        the area of the view before that layer, to the final view.
      positions: (row, col) of the centre of a cutout, as fractions of the canvas.
      resampled: Function that moves the view by a matrix and resamples it.
      level: Strength of the ops, 1 at magnitude 10.
      cutout_half: Half the side, in pixels, of a cutout.
      photometric: The ops on pixel values.
    """
    view = resampled(view_from_canvas[0] if len(choices) else np.eye(3))
    size = view.shape[:2]
    names = [(*OP_NAMES, "identity")[choice] for choice in choices]
    for layer, name in enumerate(names):
        if name in photometric:
            whole = view
            if photometric[name] in GLOBAL and not GEOMETRIC.keys().isdisjoint(names[layer:]):
                # Later geometric ops move parts of the view out of sight. Render the earlier
                # layers again, in the frame of this one: its canvas from theirs.
                moves = np.linalg.inv(view_from_canvas[layer]) @ view_from_canvas[:layer]
                whole = paint_layers(
                    choices[:layer],
                    moves,
                    positions[:layer],
                    resampled,
                    level=level,
                    cutout_half=cutout_half,
                    photometric=photometric,
                )
            view = photometric[name](view, level, whole)
        elif name == CUTOUT:
            centre = (positions[layer] * size).astype(int).tolist()
            _gray_out(view, square(view_from_canvas[layer], size, centre, cutout_half))
        elif name in GEOMETRIC:
            _gray_out(view, uncovered(view_from_canvas[layer], size))
    return view


def paint_in_turn(
    border: str,
    choices: Int[np.ndarray, "layers"],
    moves: Float64[np.ndarray, "layers 3 3"],
    positions: Float64[np.ndarray, "layers 2"],
    resampled: Resampled,
    *,
    level: float,
    cutout_half: int,
    photometric: Mapping[str, Callable[..., View]] = PHOTOMETRIC,
) -> UInt8[np.ndarray, "h w 3"]:
    """Makes the pixels of a view as the released programs do, op by op.

    Args:
      border: See `move_nearest`.
      choices: Index in `OP_NAMES` of the op of each layer; a larger one is the identity.
      moves: Map of the geometric op of each layer.
      positions: (row, col) of the centre of a cutout, as fractions of the view.
      resampled: Function that moves the view by a matrix and resamples it.
      level: Strength of the ops, 1 at magnitude 10.
      cutout_half: Half the side, in pixels, of a cutout.
      photometric: The ops on pixel values.
    """
    view = resampled(np.eye(3))
    for choice, move, position in zip(choices, moves, positions, strict=True):
        name = (*OP_NAMES, "identity")[choice]
        if name in photometric:
            view = photometric[name](view, level, view)
        elif name in GEOMETRIC:
            view = move_nearest(view, move, border)
        elif name == CUTOUT:
            size = view.shape[:2]
            centre = (position * size).astype(int).tolist()
            view = view.copy()
            _gray_out(view, square(np.eye(3), size, centre, cutout_half))
    return view


def _of_bytes(views: Views) -> Views:
    """Truncates the pixels of earlier ops, such as `resize_small`, to bytes."""
    if views.dtype == np.uint8:
        return views
    return dataclasses.replace(views, source=np.clip(views.source, 0, 255).astype(np.uint8))


def _gray_out(view: np.ndarray, marked: np.ndarray):
    cv2.copyTo(_constant(view.shape, GRAY), marked, view)


@functools.cache
def _constant(shape: tuple[int, ...], value: int) -> np.ndarray:
    return np.full(shape, value, np.uint8)


@functools.cache
def _moves(
    ops: tuple[str, ...],
    size: tuple[int, int],
    level: float,
    translate_const: float,
    indexed: bool,
) -> np.ndarray:
    """Returns the matrix of each op and of the identity at -level and level, (2, ops + 1, 3, 3).

    With `indexed`, shears leave the centres of the first row or column in place, as in the released
    programs, not its edge.
    """
    centre = affine.translation_matrix(0.5, 0.5)

    def move(name: str, signed: float) -> affine.Matrix:
        if name not in GEOMETRIC:
            return np.eye(3)
        matrix = GEOMETRIC[name](signed, *size, translate_const)
        is_shear = indexed and name.startswith("shear")
        return centre @ matrix @ np.linalg.inv(centre) if is_shear else matrix

    names = (*ops, "identity")
    return np.array([[move(name, signed) for name in names] for signed in (-level, level)])


def _products(moves: np.ndarray) -> np.ndarray:
    """Multiplies each layer's matrix by the matrices of all later layers, (..., layers, 3, 3)."""
    products = moves.copy()
    for layer in reversed(range(moves.shape[-3] - 1)):
        products[..., layer, :, :] = products[..., layer + 1, :, :] @ moves[..., layer, :, :]
    return products
