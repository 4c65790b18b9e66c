"""What to do about a step that needs more memory than a device has."""

import math
import re
from collections.abc import Sequence
from typing import Any

from vmoe_prc.compile.targets import GIB
from vmoe_prc.runtime.memory import device_bytes
from vmoe_prc.steps.state import TrainState

_LARGEST = re.compile(
    r"Size: (?P<size>[\d.]+[KMG])\n\s+(?:Operator: op_name=\"(?P<name>[^\"]*)\"[^\n]*\n\s+)?"
    r"(?:[^\n]*\n\s+)*?Shape: (?P<shape>[^\s{]+)"
)


def allocations(message: str, number: int = 4) -> list[str]:
    """Reads the largest allocations out of the compiler's message that memory is exceeded."""
    return [
        f"{match['size']} {match['shape']} {(match['name'] or '').rsplit('/', 2)[-1]}".strip()
        for match in _LARGEST.finditer(message)
    ][:number]


def remedies(config: Any, state: TrainState, num_devices: int, available: int) -> list[str]:
    """Lists the options that make a step smaller and are not in use, the likeliest first.

    Args:
      config: The completed configuration.
      state: Shapes and shardings of its state.
      num_devices: Devices of the mesh.
      available: Bytes of a device.
    """
    held = device_bytes(state)
    moe, optimizer = config.model.encoder.moe, config.optimizer
    of_state = [
        (
            bool(moe.layers) and _more_partitions(moe, config, num_devices),
            "config.num_expert_partitions: more, so that a device holds fewer experts",
        ),
        (
            not config.shard_optimizer and num_devices > 1,
            "config.shard_optimizer=True: the optimiser's state is split over all devices",
        ),
        (not config.shard_dense_params, "config.shard_dense_params=True: kernels are split"),
        (
            optimizer.get("mu_dtype") == "float32",
            "config.optimizer.mu_dtype=bfloat16: half of Adam's first moments",
        ),
    ]
    of_activations = [
        (config.model.dtype == "float32", "config.model.dtype=bfloat16: half of the activations"),
        (
            moe.router.dispatcher.name == "dropless" and config.num_expert_partitions > 1,
            "dispatcher.name=gather: buffers of a fixed capacity instead of all tokens of a row",
        ),
        (
            config.model.encoder.get("remat", "none") == "none",
            "config.model.encoder.remat=blocks: activations are computed again",
        ),
        (True, f"config.microsteps above {config.microsteps}: smaller parts of the batch"),
        (True, "config.dataset.train.batch_size: fewer images, or more devices"),
    ]
    parts = [*of_state, *of_activations] if held > available / 2 else [*of_activations, *of_state]
    return [sentence for applies, sentence in parts if applies]


def _more_partitions(moe: Any, config: Any, num_devices: int) -> bool:
    return config.num_expert_partitions < math.gcd(moe.num_experts, num_devices)


def too_large(size: str, largest: Sequence[str], options: Sequence[str]) -> str:
    """Words an error: how much is needed, for what, and what would help."""
    lines = [f"the step does not fit: {size}"]
    if largest:
        lines += ["largest buffers:", *(f"  {line}" for line in largest)]
    return "\n".join([*lines, "what makes it smaller:", *(f"  {line}" for line in options)])


def in_gib(size: int) -> str:
    """Formats bytes."""
    return f"{size / GIB:.2f} GiB"
