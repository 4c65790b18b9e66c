"""Communication volume of a training step: the formula of docs/PARALLELISM.md."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from vmoe_prc.config.registry import DISPATCHERS, ROUTERS
from vmoe_prc.models.dispatch import DispatcherOptions, buffer_capacity
from vmoe_prc.models.routing import DEFAULT_ROUTER
from vmoe_prc.models.routing.router import DEFAULT_DISPATCHER
from vmoe_prc.runtime.mesh import AXES, split_further

FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind and purpose.

    Attributes:
      what: The arrays that are sent.
      collective: Operation of XLA, such as 'all-to-all'.
      axes: Mesh axes whose devices take part.
      arrays: Number of arrays; the compiler may put several into one operation.
      bytes: Their size together, on one device: what an all-to-all exchanges, an
        all-reduce or reduce-scatter sums, or an all-gather results in.
      devices: Devices that take part in each collective, along `axes`.
    """

    what: str
    collective: str
    axes: tuple[str, ...]
    arrays: int
    bytes: int
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that leave a device, with ring algorithms."""
        rounds = 2 if self.collective == "all-reduce" else 1
        return rounds * self.bytes * (self.devices - 1) / self.devices


def step_traffic(
    model: nn.Module,
    params: Any,
    mesh: Mesh | AbstractMesh,
    image_shape: tuple[int, int, int, int],
    consistency: str | None = None,
    shard_optimizer: bool = False,
) -> list[Traffic]:
    """Lists what a step of training sends, scalars aside, with gradients in float32.

    Scalars are losses, metrics and norms: some bytes for each block and parameter array.
    In evaluation, which has no backward pass, the tokens are sent once each way, the choices
    (dropless dispatch) and the kernels once, and nothing else.

    Args:
      model: The model.
      params: Its parameters, or their shapes, with shardings of `mesh.tree_shardings`.
      mesh: The device mesh.
      image_shape: (N, H, W, 3) of the images of a step, over all devices.
      consistency: 'prc' if the S matrix (E, E) is summed; None or another name otherwise.
      shard_optimizer: Whether updates are split over all devices, see `placement_of_updates`.
    """
    experts, kernels, others = _by_place(params)
    moe = model.encoder.get("moe") or {}
    num_matrices = len(moe.get("layers", ())) if consistency == "prc" else 0
    matrix = (moe.get("num_experts", 0),) * 2
    whole = [_bytes(x.shape) for x in kernels]
    rows = [
        *_between_experts(model, mesh, image_shape),
        *_gradients("gradients of experts", ("data",), experts, shard_optimizer),
        *_gradients("other gradients", AXES, others, shard_optimizer),
        ("kernels", "all-gather", AXES, whole),
        ("gradients of kernels", "reduce-scatter", AXES, whole),
        ("S of PRC", "all-reduce", AXES, [_bytes(matrix)] * num_matrices),
    ]
    sizes = dict(mesh.shape)
    traffic = [
        Traffic(what, collective, axes, len(arrays), sum(arrays), math.prod(sizes[a] for a in axes))
        for what, collective, axes, arrays in rows
    ]
    return [row for row in traffic if row.bytes and row.devices > 1]


def _gradients(
    what: str, axes: tuple[str, ...], params: list[Any], shard_optimizer: bool
) -> list[tuple[str, str, tuple[str, ...], list[int]]]:
    """Lists sums of gradients over the devices that have the same parameters."""
    whole, split = [], []
    for leaf in params:
        is_split = shard_optimizer and split_further(leaf.shape, leaf.sharding) is not leaf.sharding
        (split if is_split else whole).append(_bytes(leaf.sharding.shard_shape(leaf.shape)))
    return [
        (what, "all-reduce", axes, whole),
        (f"{what}, split", "reduce-scatter", axes, split),
        (f"{what}, updated parameters", "all-gather", axes, split),
    ]


def _by_place(params: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Sorts parameters: split over `expert` only, split over all devices, replicated."""
    experts, kernels, others = [], [], []
    for leaf in jax.tree.leaves(params):
        axes = set(_flatten(leaf.sharding.spec))
        place = experts if axes == {"expert"} else kernels if axes else others
        place.append(leaf)
    return experts, kernels, others


def _flatten(spec: Iterable[Any]) -> list[str]:
    return [
        name
        for axes in spec
        if axes is not None
        for name in ((axes,) if isinstance(axes, str) else axes)
    ]


def _between_experts(
    model: nn.Module, mesh: Mesh | AbstractMesh, image_shape: tuple[int, int, int, int]
) -> list[tuple[str, str, tuple[str, ...], list[int]]]:
    """Lists what is sent to the experts and back, in the forward and the backward pass."""
    moe = model.encoder.get("moe") or {}
    num_blocks = len(moe.get("layers", ()))
    if not num_blocks:
        return []
    num_images, *image_size, _ = image_shape
    patches = math.prod(side // p for side, p in zip(image_size, model.patch_size, strict=True))
    num_images *= moe.get("ensemble_size", 1)
    tokens_per_image = patches + (model.classifier == "token")
    num_tokens = num_images * tokens_per_image
    num_groups = num_tokens // moe["group_size"] // mesh.size
    router = moe.get("router") or {}
    dispatcher, k = router.get("dispatcher") or {}, router.get("num_selected_experts", 1)
    dtype = jnp.bfloat16 if dispatcher.get("bfloat16") else model.dtype or jnp.float32
    token = model.hidden_size * jnp.dtype(dtype).itemsize
    # With rematerialisation the backward pass sends the tokens once more.
    forward = 1 if model.encoder.get("remat", "none") == "none" else 2
    if not DISPATCHERS[dispatcher.get("name", DEFAULT_DISPATCHER)].has_capacity:
        partitions = mesh.shape["expert"]
        if dispatcher.get("device_capacity_factor") is not None:
            num_choices = num_groups * moe["group_size"] * k
            factor = min(dispatcher["device_capacity_factor"], partitions)
            moved = [math.ceil(factor * num_choices) * token, num_choices * token]
            counts = [_bytes((partitions, n)) for n in (partitions, moe["num_experts"])]
            return [
                ("tokens", "ragged-all-to-all", ("expert",), moved * (forward + 1) * num_blocks),
                ("counts", "all-gather", ("expert",), counts * forward * num_blocks),
            ]
        in_row = num_groups * moe["group_size"] * partitions
        # Each choice is sent as expert (int32), slot (int32) and weight (float32).
        tokens, choices = in_row * token, _bytes((in_row, k))
        return [
            ("tokens", "all-gather", ("expert",), [tokens] * (forward + 1) * num_blocks),
            ("choices", "all-gather", ("expert",), [choices] * 3 * forward * num_blocks),
            ("tokens", "reduce-scatter", ("expert",), [tokens] * 2 * num_blocks),
            ("gradients of weights", "reduce-scatter", ("expert",), [choices] * num_blocks),
        ]
    kind, num_experts = ROUTERS[router.get("name", DEFAULT_ROUTER)], moe["num_experts"]
    if slots := getattr(kind, "slots_per_expert", None):
        slots_on_device = num_images // mesh.size * slots(router, tokens_per_image, num_experts)
    else:
        mean_choices = k + getattr(kind, "mean_extra_choices", 0)
        slots_on_device = num_groups * buffer_capacity(
            moe["group_size"],
            1 if kind.experts_choose else mean_choices,
            num_experts,
            DispatcherOptions(
                **{
                    field.name: dispatcher.get(field.name, field.default)
                    for field in dataclasses.fields(DispatcherOptions)
                }
            ),
        )
    buffers = num_experts * slots_on_device * token
    return [("tokens", "all-to-all", ("expert",), [buffers] * 2 * (forward + 1) * num_blocks)]


def _bytes(shape: Iterable[int]) -> int:
    return FLOAT32_BYTES * math.prod(shape)
