"""What the devices send each other in a training step: the formula of docs/PARALLELISM.md."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from vmoe_prc.mesh import AXES
from vmoe_prc.models import VisionTransformerMoe
from vmoe_prc.models.dispatch import compute_capacity

FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind and purpose.

    Attributes:
      what: What is sent.
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
    model: VisionTransformerMoe,
    params: Any,
    mesh: Mesh | AbstractMesh,
    image_shape: tuple[int, int, int, int],
    consistency: str | None = None,
) -> list[Traffic]:
    """Lists what a step of training in float32 sends, scalars aside.

    Scalars are losses, metrics and norms: some bytes for each block and parameter array.
    Evaluation sends half of the tokens' traffic, and of the rest the kernels alone.

    Args:
      model: The model.
      params: Its parameters, or their shapes, with shardings of `mesh.tree_shardings`.
      mesh: The device mesh.
      image_shape: (N, H, W, 3) of the images of a step, over all devices.
      consistency: 'prc' if the S matrix (E, E) is summed; None or another name otherwise.
    """
    experts, kernels, others = _by_place(params)
    num_experts, num_blocks, buffer = _buffers(model, mesh, image_shape)
    num_matrices = num_blocks if consistency == "prc" else 0
    whole = [_bytes(x.shape) for x in kernels]
    parts = [_bytes(x.sharding.shard_shape(x.shape)) for x in experts]
    rows = [
        # To the experts and back, forward and backward.
        ("tokens", "all-to-all", ("expert",), [buffer] * 4 * num_blocks),
        ("gradients of experts", "all-reduce", ("data",), parts),
        ("other gradients", "all-reduce", AXES, [_bytes(x.shape) for x in others]),
        ("kernels", "all-gather", AXES, whole),
        ("gradients of kernels", "reduce-scatter", AXES, whole),
        ("S of PRC", "all-reduce", AXES, [_bytes((num_experts, num_experts))] * num_matrices),
    ]
    sizes = dict(mesh.shape)
    traffic = [
        Traffic(what, collective, axes, len(arrays), sum(arrays), math.prod(map(sizes.get, axes)))
        for what, collective, axes, arrays in rows
    ]
    return [row for row in traffic if row.bytes and row.devices > 1]


def _by_place(params: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Sorts parameters: split over `expert` alone, split over all devices, whole."""
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


def _buffers(model, mesh, image_shape) -> tuple[int, int, int]:
    """Returns E, the number of MoE blocks, and the bytes of a device's buffers in one."""
    moe = model.encoder.get("moe") or {}
    if not moe.get("layers"):
        return 0, 0, 0
    num_images, *image_size, _ = image_shape
    patches = math.prod(side // p for side, p in zip(image_size, model.patch_size, strict=True))
    num_tokens = num_images * (patches + (model.classifier == "token"))
    num_groups = num_tokens // moe["group_size"] // mesh.size
    router = moe.get("router") or {}
    dispatcher = router.get("dispatcher") or {}
    capacity = compute_capacity(
        moe["group_size"] * router.get("num_selected_experts", 1),
        moe["num_experts"],
        dispatcher.get("capacity_factor", 1.05),
    )
    if router.get("name") == "NoisyTopItemsPerExpertRouter":
        capacity = min(capacity, moe["group_size"])
    shape = (num_groups, moe["num_experts"], capacity, model.hidden_size)
    dtype = jnp.bfloat16 if dispatcher.get("bfloat16") else model.dtype or jnp.float32
    return moe["num_experts"], len(moe["layers"]), math.prod(shape) * jnp.dtype(dtype).itemsize


def _bytes(shape: Iterable[int]) -> int:
    return FLOAT32_BYTES * math.prod(shape)
