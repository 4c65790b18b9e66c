"""What a compiled step needs and sends: as a record, a table, and bounds on its time."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vmoe_prc.compile import hlo
from vmoe_prc.compile.targets import GIB, Target
from vmoe_prc.errors import RunError
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.models.traffic import Traffic, step_traffic
from vmoe_prc.train.step import BuiltStep

MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      arguments: State and batch.
      temporaries: Activations, gradients and buffers.
      peak: The most at once, by the compiler's account.
      available: Memory of the chip.
    """

    arguments: int
    temporaries: int
    peak: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether the chip has as much."""
        return self.peak <= self.available


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled step of one device.

    Attributes:
      target: Name of the target.
      device_kind: What JAX calls its devices.
      mesh: Sizes of the axes.
      images: Views of a step, over all devices.
      parameters: Number of parameters, over all devices.
      parameters_per_device: Number of parameters that a device holds.
      experts_per_device: Experts of each MoE block that a device holds.
      memory: Bytes.
      model_flops: FLOPs of the model's matrix products, forward and backward.
      compiled_flops: FLOPs by the compiler's account; None if it gives none, as for GPUs.
      bytes_accessed: Bytes of memory traffic, likewise.
      collectives: For each kind `instructions`, `arrays` and `bytes` of the program, and
        `formula`, the bytes of docs/PARALLELISM.md, gradients in float32.
      between_slices: `arrays` and `bytes` that a device sends to other slices of TPUs, by kind.
      bytes_sent: Bytes that leave a device, by the formula.
      custom_calls: Calls of kernels and libraries by target.
      loops: Number of loops.
      loops_of_unknown_length: Those whose number of turns depends on data.
      copies: Number of copies.
      bytes_copied: Their bytes.
      host_calls: Callbacks and feeds from or to the host.
      bounds: Seconds that a step takes at least, by `compute`, `memory` and `network`.
      compile_seconds: How long the compiler took.
      versions: Versions of JAX and of the compiler.
    """

    target: str
    device_kind: str
    mesh: Mapping[str, int]
    images: int
    parameters: int
    parameters_per_device: int
    experts_per_device: float
    memory: Memory
    model_flops: float
    compiled_flops: float | None
    bytes_accessed: float | None
    collectives: Mapping[str, Mapping[str, int]]
    between_slices: Mapping[str, Mapping[str, int]]
    bytes_sent: float
    custom_calls: Mapping[str, int]
    loops: int
    loops_of_unknown_length: int
    copies: int
    bytes_copied: int
    host_calls: int
    bounds: Mapping[str, float]
    compile_seconds: float
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return dataclasses.asdict(self) | {"fits": self.memory.fits}


def describe(
    config: Any,
    target: Target,
    mesh: jax.sharding.Mesh,
    step: BuiltStep,
    compiled: jax.stages.Compiled,
    seconds: float,
    versions: Mapping[str, str],
) -> Report:
    """Reads a report out of a compiled step.

    Args:
      config: The completed configuration.
      target: The devices that it was compiled for.
      mesh: Its devices.
      step: The step that was compiled.
      compiled: The result.
      seconds: How long that took.
      versions: Versions to note down.
    """
    text = hlo.text_of(compiled)
    params = jax.tree.leaves(step.abstract_state.params)
    consistency = config.consistency and config.consistency.name
    traffic = step_traffic(
        step.model,
        step.abstract_state.params,
        mesh,
        step.image_shape,
        consistency,
        config.shard_optimizer,
    )
    cost = compiled.cost_analysis() or {}
    height, width = step.image_shape[1:3]
    forward = forward_flops_per_image(config.model.to_dict(), (height, width))
    memory = _memory(compiled, target)
    report = Report(
        target=target.name,
        device_kind=target.chip.kind,
        mesh=dict(mesh.shape),
        images=step.views_per_step,
        parameters=sum(math.prod(x.shape) for x in params),
        parameters_per_device=sum(math.prod(x.sharding.shard_shape(x.shape)) for x in params),
        experts_per_device=config.model.encoder.moe.num_experts / mesh.shape["expert"],
        memory=memory,
        model_flops=3.0 * forward * step.views_per_step / mesh.size,
        compiled_flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
        collectives=_compare(hlo.collectives(text), traffic),
        between_slices={
            kind: {"arrays": number, "bytes": size}
            for kind, (number, size) in hlo.between_slices(text).items()
        },
        bytes_sent=sum(row.sent for row in traffic),
        custom_calls=hlo.custom_calls(text),
        loops=hlo.loops(text)[0],
        loops_of_unknown_length=hlo.loops(text)[1],
        copies=hlo.copies(text)[0],
        bytes_copied=hlo.copies(text)[1],
        host_calls=hlo.host_calls(text),
        bounds={},
        compile_seconds=seconds,
        versions=versions,
    )
    return dataclasses.replace(report, bounds=_bounds(report, target, config.model.dtype))


def _memory(compiled: jax.stages.Compiled, target: Target) -> Memory:
    memory = compiled.memory_analysis()
    if memory is None:
        raise RunError("the compiler does not report the memory of the program")
    whole = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return Memory(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0) or whole,
        available=target.chip.memory,
    )


def _compare(
    found: Sequence[hlo.Collective], traffic: Sequence[Traffic]
) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: {"instructions": 0, "arrays": 0, "bytes": 0, "formula": 0}
    )
    for item in found:
        row = rows[item.kind]
        row["instructions"] += 1
        row["arrays"] += len(item.bytes)
        row["bytes"] += sum(item.bytes)
    for expected in traffic:
        rows[expected.collective]["formula"] += expected.bytes
    return dict(rows)


def _bounds(report: Report, target: Target, dtype: str) -> dict[str, float]:
    chip = target.chip
    peak = chip.flops(dtype)
    flops = max(report.model_flops, report.compiled_flops or 0.0)
    # Where the compiler counts no bytes: the state and the batch are read once, and written.
    bytes_ = report.bytes_accessed or 2.0 * report.memory.arguments
    bounds = {"memory": bytes_ / chip.bandwidth, "network": report.bytes_sent / chip.network}
    return bounds if peak is None else {"compute": flops / peak, **bounds}


def format_report(report: Report) -> str:
    """Formats a report as lines of a name and values."""
    memory = report.memory
    counted = "not counted by this compiler"
    rows = [
        ("target", f"{report.target}: {math.prod(report.mesh.values())} x {report.device_kind}"),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())),
        ("images a step", f"{report.images:,}"),
        (
            "parameters",
            f"{report.parameters:,}; on a device {report.parameters_per_device:,}, "
            f"{report.experts_per_device:g} experts of a block",
        ),
        (
            "memory of a device",
            f"peak {memory.peak / GIB:.2f} of {memory.available / GIB:.1f} GiB "
            f"({'fits' if memory.fits else 'DOES NOT FIT'}); arguments "
            f"{memory.arguments / GIB:.2f}, temporaries {memory.temporaries / GIB:.2f}",
        ),
        ("TFLOPs of the model", f"{report.model_flops / 1e12:.3f} on a device"),
        (
            "TFLOPs compiled",
            counted if report.compiled_flops is None else f"{report.compiled_flops / 1e12:.3f}",
        ),
        (
            "GB moved",
            counted if report.bytes_accessed is None else f"{report.bytes_accessed / 1e9:.2f}",
        ),
        *(
            (
                kind,
                f"{row['instructions']} with {row['arrays']} arrays of "
                f"{row['bytes'] / MEGABYTE:.2f} MB; by the formula "
                f"{row['formula'] / MEGABYTE:.2f} MB",
            )
            for kind, row in report.collectives.items()
        ),
        *(
            (
                f"{kind} between slices",
                f"{row['arrays']} arrays of {row['bytes'] / MEGABYTE:.2f} MB",
            )
            for kind, row in report.between_slices.items()
        ),
        (
            "custom calls",
            ", ".join(f"{count} {name}" for name, count in report.custom_calls.items()) or "none",
        ),
        ("loops", f"{report.loops}, {report.loops_of_unknown_length} of a length that is data"),
        ("copies", f"{report.copies} of {report.bytes_copied / MEGABYTE:.1f} MB"),
        ("host callbacks", str(report.host_calls)),
        *(
            (f"at least, for {what}", f"{1e3 * seconds:.2f} ms (a bound, no prediction)")
            for what, seconds in report.bounds.items()
        ),
        ("compiled in", f"{report.compile_seconds:.0f} s"),
        ("with", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
