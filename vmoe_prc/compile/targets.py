"""Machines that a step can be compiled for, as XLA describes them, and their ceilings."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vmoe_prc.config import ConfigError, nearest
from vmoe_prc.errors import RunError
from vmoe_prc.runtime.peaks import peak_flops

GIB = 2**30
TPU_DOCS = "cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator; rates are per JAX device.

    Attributes:
      kind: `jax.Device.device_kind`.
      platform: 'tpu' or 'cuda'.
      memory: Bytes of memory; of TPUs those that XLA gives to programs are somewhat fewer.
      bandwidth: Bytes/s of the memory.
      network: Bytes/s that leave a device at most: all links of a TPU, NVLink of a GPU.
      source: Where the rates are published.
    """

    kind: str
    platform: str
    memory: int
    bandwidth: float
    network: float
    source: str

    def flops(self, dtype: str) -> float | None:
        """Peak FLOP/s of matrix products of a dtype at JAX's default precision."""
        return peak_flops(self.kind, dtype)


CHIPS = {
    "v4": Chip("TPU v4", "tpu", 32 * GIB, 1.2288e12, 300e9, TPU_DOCS + "v4"),
    "v5e": Chip("TPU v5 lite", "tpu", 16 * GIB, 8.19e11, 200e9, TPU_DOCS + "v5e"),
    "v5p": Chip("TPU v5", "tpu", 95 * GIB, 2.765e12, 600e9, TPU_DOCS + "v5p"),
    "v6e": Chip("TPU v6 lite", "tpu", 32 * GIB, 1.64e12, 448e9, TPU_DOCS + "v6e"),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3", "cuda", 84_929_347_584, 3.35e12, 450e9, "NVIDIA data sheet: H100"
    ),
}
# What the names of TPU slices count: chips, or cores of which a chip has two.
_SLICES = {"v4": ("v4", 2), "v5p": ("v5p", 2), "v5e": ("v5litepod", 1), "v6e": ("v6e", 1)}
GPUS_PER_HOST = 8
_PACKAGES = {
    "tpu": ("libtpu", 'pip install "libtpu==0.0.42.*"'),
    "cuda": ("jax_plugins.xla_cuda13", 'pip install "jax[cuda13]"'),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind.

    Attributes:
      name: As it was asked for, such as 'v5e:16x16'.
      chip: Their kind.
      shape: Sides of a TPU slice, or the number of GPUs.
      slices: Number of such TPU slices, with the network of the data centre between them.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def num_devices(self) -> int:
        """Number of JAX devices."""
        return self.slices * self.devices_per_slice

    @property
    def devices_per_slice(self) -> int:
        """Number of JAX devices of a slice, or of all GPUs."""
        return math.prod(self.shape)


def parse_target(text: str) -> Target:
    """Reads a target such as `h100:8`, `v5e:16x16`, or `v5e:16x16:2` of two slices.

    Raises:
      ConfigError: If it is not of this form.
    """
    name, _, size = text.partition(":")
    shape, *slices = size.split(":", 1)
    if name not in CHIPS:
        raise ConfigError(
            "--target", text, f"unknown chip; allowed: {', '.join(CHIPS)}", nearest(name, CHIPS)
        )
    sides = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2, "h100": 1}[name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != sides:
        example = f"{name}:" + "x".join(["4"] * sides)
        raise ConfigError("--target", text, f"expected a number for each side, such as {example}")
    if slices and (sides == 1 or not re.fullmatch(r"[1-9]\d*", slices[0])):
        raise ConfigError("--target", text, "expected a number of TPU slices after the second ':'")
    sizes = tuple(map(int, shape.split("x")))
    return Target(text, CHIPS[name], sizes, *map(int, slices))


def devices_of(target: Target) -> Sequence[Any]:
    """Describes the devices of a target by the compiler for it.

    Sets environment variables that the compiler reads, so that it asks no cloud for a TPU and
    no driver for a GPU.

    Raises:
      RunError: If the compiler is not installed.
      ConfigError: If there is no such slice.
    """
    module, command = _PACKAGES[target.chip.platform]
    if not _is_installed(module):
        raise RunError(f"{target.name} needs the compiler for it: {command}")
    from jax.experimental import topologies

    find = _find_gpus if target.chip.platform == "cuda" else _find_tpus
    try:
        return find(target, topologies.get_topology_desc)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError("--target", target.name, " ".join(str(error).split())[:300]) from None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _find_tpus(target, describe):
    name, shape = target.name.split(":")[:2]
    prefix, units = _SLICES[name]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{prefix}-{target.devices_per_slice * units}"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # No chip is opened: several steps may be compiled at once, or one beside a training.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # The two cores of a TPU v4 are one device, as they are on a machine.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name == "v4" else {}
    if target.slices > 1:
        options["num_slices"] = target.slices
    return describe(platform="tpu", topology_name=f"{name}:{shape}", **options).devices


def _find_gpus(target, describe):
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    gpus = target.devices_per_slice
    hosts, rest = divmod(gpus, GPUS_PER_HOST)
    if hosts > 1 and rest:
        raise ConfigError(
            "--target", target.name, f"more than {GPUS_PER_HOST} GPUs are whole hosts of them"
        )
    topology = f"1x{hosts}x{GPUS_PER_HOST}" if hosts > 1 else f"1x1x{gpus}"
    description = resources.files("vmoe_prc.compile").joinpath("h100.pbtxt").read_text()
    return describe(platform="cuda", target_config=description, topology=topology).devices
