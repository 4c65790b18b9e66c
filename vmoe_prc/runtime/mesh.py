"""The (data, expert) device mesh and where every array lives on it."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vmoe_prc.arrays import Array
from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.trees import map_named

AxisRules = Sequence[tuple[str, Sequence[Any]]]

AXES = ("data", "expert")
AXIS_TYPES = (AxisType.Auto, AxisType.Auto)
# Images, and groups of tokens, are split over every device.
BATCH = PartitionSpec(AXES)
# (E, G*C, D): axis 0, the expert, over `expert`; axis 1, the slots of the groups, over `data`.
EXPERT_BUFFERS = PartitionSpec("expert", "data")
EXPERTS = PartitionSpec("expert")
REPLICATED = PartitionSpec()


def create_mesh(num_expert_partitions: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices as a (data, expert) mesh.

    Args:
      num_expert_partitions: Size of the `expert` axis: over how many devices the experts
        of one MoE layer are spread.
      devices: Devices to use; all of them by default.

    Raises:
      ConfigError: If there are fewer devices than partitions, or they do not divide.
    """
    devices = _ordered(jax.devices() if devices is None else devices)
    shape = mesh_shape(len(devices), num_expert_partitions)
    return Mesh(np.asarray(devices, dtype=object).reshape(shape), AXES, axis_types=AXIS_TYPES)


def _ordered(devices: Sequence[Any]) -> list[Any]:
    """Sorts devices by host, so that a process reads the rows of its own devices."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def largest_expert_partitions(num_experts: int, devices: Sequence[Any]) -> int:
    """Returns the most partitions of the experts that keep their traffic on fast links.

    They divide the experts and the devices of each slice of TPUs, or else of each host. So each
    row of the mesh is within a slice, and only `data` crosses the network between slices.

    Args:
      num_experts: Experts of a MoE block.
      devices: All devices of the run.
    """
    near = [getattr(device, "slice_index", device.process_index) for device in _ordered(devices)]
    # Slices whose hosts are not numbered one after the other count as smaller ones.
    neighbours = [len(list(group)) for _, group in itertools.groupby(near)]
    return math.gcd(num_experts, *neighbours)


def abstract_mesh(num_devices: int, num_expert_partitions: int) -> AbstractMesh:
    """Describes the mesh of `num_devices` devices that need not exist; raises as `create_mesh`."""
    return AbstractMesh(mesh_shape(num_devices, num_expert_partitions), AXES, axis_types=AXIS_TYPES)


def mesh_shape(num_devices: int, num_expert_partitions: int) -> tuple[int, int]:
    """Returns the sizes of the axes `data` and `expert`; raises as `create_mesh`."""
    if num_expert_partitions < 1 or num_devices % num_expert_partitions:
        raise ConfigError(
            "config.num_expert_partitions",
            num_expert_partitions,
            f"must divide the number of devices, which is {num_devices}",
        )
    return num_devices // num_expert_partitions, num_expert_partitions


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, REPLICATED)


def shard(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every process has on the devices: each process sends its parts."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def own_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices along the first axis that this process has, and these rows."""
    parts = {x.index[0].indices(len(array))[:2]: x.data for x in array.addressable_shards}
    spans = sorted(parts)
    rows = np.concatenate([np.arange(*span) for span in spans])
    return rows, np.concatenate([np.asarray(parts[span]) for span in spans])


def kernel_spec(shape: Sequence[int], num_devices: int) -> PartitionSpec:
    """Splits the largest dimension that the devices divide over all of them, if there is one.

    Args:
      shape: Shape of the kernel of a dense layer or a convolution.
      num_devices: Size of the mesh.
    """
    divisible = [axis for axis, size in enumerate(shape) if size % num_devices == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, *BATCH)


def tree_shardings(
    tree: Any, rules: AxisRules, mesh: Mesh | AbstractMesh, shard_kernels: bool = False
) -> Any:
    """Gives each leaf the axes of the first rule whose regex is found in its name.

    Names are paths such as `params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel`; the
    optimiser's moments of a parameter end in the same words and so follow the same rule.

    Args:
      tree: Arrays or `jax.ShapeDtypeStruct`s.
      rules: Pairs (regex, axes), axes being mesh axis names (or None) per leading
        dimension. A leaf that no rule matches is replicated.
      mesh: The device mesh.
      shard_kernels: Whether kernels that no rule matches are split by `kernel_spec`.

    Returns:
      A tree of `NamedSharding`s.

    Raises:
      ConfigError: If a rule names an axis the mesh lacks, matches no leaf, or if a
        dimension is not divisible by the axis it is split over.
    """
    compiled = [(re.compile(regex), tuple(axes)) for regex, axes in rules]
    used = set()

    def sharding(name, leaf):
        for i, (regex, axes) in enumerate(compiled):
            if regex.search(name):
                used.add(i)
                if math.prod(leaf.shape) == 1:  # what an optimiser keeps in place of a moment
                    return NamedSharding(mesh, REPLICATED)
                _check_divisible(name, leaf.shape, axes, mesh)
                return NamedSharding(mesh, PartitionSpec(*axes))
        is_kernel = shard_kernels and name.endswith("/kernel")
        return NamedSharding(mesh, kernel_spec(leaf.shape, mesh.size) if is_kernel else REPLICATED)

    shardings = map_named(sharding, tree)
    for i, (regex, _) in enumerate(rules):
        if i not in used:
            raise ConfigError(f"config.params_axis_resources[{i}]", regex, "matches no parameter")
    return shardings


def split_further(shape: Sequence[int], sharding: NamedSharding) -> NamedSharding:
    """Splits an array over the axes of the mesh that do not split it yet.

    The largest dimension that is whole and that these devices divide is split; if there is none,
    the sharding is returned as it is.
    """
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    used = {name for axes in spec for name in ((axes,) if isinstance(axes, str) else axes or ())}
    free = tuple(name for name in sharding.mesh.axis_names if name not in used)
    devices = math.prod(sharding.mesh.shape[name] for name in free)
    whole = [i for i, size in enumerate(shape) if spec[i] is None and size % devices == 0]
    if not whole or math.prod(shape) == 1:
        return sharding
    spec[max(whole, key=lambda i: shape[i])] = free
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def on_each_device(
    function: Callable[..., Any], in_specs: tuple[PartitionSpec, ...], out_specs: PartitionSpec
) -> Callable[..., Any]:
    """Makes `function` see, on each device, only what that device holds of the arrays.

    Nothing is sent between devices but by `all_to_all` and `all_gather`, which `function`
    may call. Outside a mesh it is called as it is, with whole arrays.

    Args:
      function: Function of arrays, or of trees of arrays.
      in_specs: How each argument is split; a tree is split alike in all of its leaves.
      out_specs: How the results are split.
    """

    def run(*args):
        if jax.sharding.get_abstract_mesh().empty:
            return function(*args)
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs)(*args)

    return run


def all_to_all(x: Array, split_axis: int, concat_axis: int) -> Array:
    """Exchanges parts of `x` among the devices of a row of the `expert` axis.

    For use in a function of `on_each_device`; does nothing outside a mesh.

    Args:
      x: The array of this device. Part i along `split_axis` goes to device i of the row.
      split_axis: Dimension that becomes smaller.
      concat_axis: Dimension along which the received parts are joined, in device order.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.all_to_all(x, "expert", split_axis, concat_axis, tiled=True)


def all_gather(x: Array, spec: PartitionSpec) -> Array:
    """Joins the parts of an array that is split by `spec`; its gradient is scattered.

    For use in a function of `on_each_device`; does nothing outside a mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    for axis, names in enumerate(spec):
        if names is not None:
            x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
    return x


def sum_scatter(x: Array, spec: PartitionSpec) -> Array:
    """Sums `x` over the axes of `spec`; each device keeps its part, as `all_gather` takes it.

    For use in a function of `on_each_device`; does nothing outside a mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    for axis, names in enumerate(spec):
        if names is not None:
            x = jax.lax.psum_scatter(x, names, scatter_dimension=axis, tiled=True)
    return x


def vary_over_data(x: Array) -> Array:
    """Marks `x`, which is split over `expert` only, as different on each device of `data`.

    For use in a function of `on_each_device`; does nothing outside a mesh. The gradient is
    summed over the devices that share `x`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.pcast(x, "data", to="varying")


def vary(x: Array) -> Array:
    """Marks `x` as different on each device, where JAX cannot see it: the result of a kernel.

    For use in a function of `on_each_device`; does nothing outside of one.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x


def expert_index() -> jax.Array:
    """Returns the index of the device in its row of the `expert` axis; 0 outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return jnp.zeros((), jnp.int32)
    return jax.lax.axis_index("expert")


def device_key(key: jax.Array) -> jax.Array:
    """Makes a random key of each device from one that all have, within `on_each_device`."""
    if jax.sharding.get_abstract_mesh().empty:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(BATCH[0]))


def _check_divisible(
    name: str, shape: Sequence[int], axes: Sequence[Any], mesh: Mesh | AbstractMesh
):
    for dimension, axis in zip(shape, axes, strict=False):
        parts = (axis,) if isinstance(axis, str) else tuple(axis or ())
        unknown = [part for part in parts if part not in mesh.shape]
        if unknown:
            raise ConfigError(
                "config.params_axis_resources",
                unknown[0],
                f"unknown mesh axis; allowed: {', '.join(mesh.axis_names)}",
            )
        size = math.prod(mesh.shape[part] for part in parts)
        if dimension % size:
            raise ConfigError(
                "config.num_expert_partitions",
                size,
                f"must divide the leading dimension of {name}, of shape {tuple(shape)}",
            )
