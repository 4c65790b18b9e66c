"""The two ceilings of a compiled step: the device's arithmetic and its memory."""

import re
from typing import Any

# Keys of `compiled.cost_analysis()`.
FLOPS, BYTES = "flops", "bytes accessed"
_FLASH = re.compile(r'custom_call_target="__cudnn\$fmha(\w*)"')


def roofline(
    cost: dict[str, float], seconds: float, peak_flops: float, bandwidth: float
) -> dict[str, Any]:
    """Compares a step's time with what arithmetic and memory would take at their peaks.

    The compiler counts neither what cuDNN and other libraries compute inside of a call,
    nor that the caches may serve a read.

    Args:
      cost: `cost_analysis()` of the compiled step.
      seconds: Time of a step.
      peak_flops: FLOP/s of the device.
      bandwidth: Bytes/s of its memory.
    """
    arithmetic, memory = cost[FLOPS] / peak_flops, cost[BYTES] / bandwidth
    return {
        "TFLOPs": cost[FLOPS] / 1e12,
        "GB": cost[BYTES] / 1e9,
        "FLOPs/byte": cost[FLOPS] / cost[BYTES],
        "ridge": peak_flops / bandwidth,
        "arithmetic_ms": 1e3 * arithmetic,
        "memory_ms": 1e3 * memory,
        "step_ms": 1e3 * seconds,
        "bound": "arithmetic" if arithmetic > memory else "memory",
        "of_bound": max(arithmetic, memory) / seconds,
    }


def flash_calls(hlo: str) -> dict[str, int]:
    """Counts the calls of cuDNN's flash attention in optimised HLO, by direction."""
    calls = _FLASH.findall(hlo)
    backward = sum("Backward" in call for call in calls)
    return {"forward": len(calls) - backward, "backward": backward}
