"""Peak rates of accelerators: what a model's speed is measured against."""

import re
from typing import NamedTuple


class _Peak(NamedTuple):
    """TFLOP/s of one JAX device in dense matrix products at JAX's default precision."""

    pattern: str
    bfloat16: float | None
    float32: float | None
    source: str


_TPU = "cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA data sheet: "

# A JAX device is one core of TPU v2, v3 and TPU7x, half a chip. A TPU multiplies float32
# as bfloat16 by default. NVIDIA states rates with 2:4 sparsity since Ampere; here they
# are halved. From Ampere on float32 is TF32 by default; before, there is no bfloat16 unit.
# Patterns must match the whole name, so that a MIG slice is not taken for the whole GPU.
_PEAKS = (
    _Peak(r"TPU v2", 22.5, 22.5, _TPU + "v2"),
    _Peak(r"TPU v3", 61.5, 61.5, _TPU + "v3"),
    _Peak(r"TPU v4", 275, 275, _TPU + "v4"),
    _Peak(r"TPU v4 lite", 138, 138, "Jouppi et al., ISCA 2021 (TPUv4i)"),
    _Peak(r"TPU v5 ?(lite|e)", 197, 197, _TPU + "v5e"),
    _Peak(r"TPU v5p?", 459, 459, _TPU + "v5p"),
    _Peak(r"TPU v6 ?(lite|e)", 918, 918, _TPU + "v6e"),
    _Peak(r"TPU7x?", 1153.5, 1153.5, _TPU + "tpu7x"),
    _Peak(r"(NVIDIA |Tesla )+V100-SXM.*", None, 15.7, _NVIDIA + "V100, SXM2"),
    _Peak(r"(NVIDIA |Tesla )+V100-PCIE.*", None, 14.0, _NVIDIA + "V100, PCIe"),
    _Peak(r"(NVIDIA |Tesla )+T4", None, 8.1, _NVIDIA + "T4"),
    _Peak(r"NVIDIA A100[ -](SXM|PCI|\d+GB PCI).*", 312, 156, _NVIDIA + "A100"),
    _Peak(r"NVIDIA A10", 125, 62.5, _NVIDIA + "A10"),
    _Peak(r"NVIDIA A10G", 70, 35, _NVIDIA + "A10G"),
    _Peak(r"NVIDIA L4", 121, 60, _NVIDIA + "L4"),
    _Peak(r"NVIDIA L40S", 362, 183, _NVIDIA + "L40S"),
    _Peak(r"NVIDIA H100( \d+GB HBM\d.*)?", 989.4, 494.7, _NVIDIA + "H100, SXM"),
    _Peak(r"NVIDIA H100 PCIe", 756, 378, _NVIDIA + "H100, PCIe"),
    _Peak(r"NVIDIA H100 NVL", 835.5, 417.5, _NVIDIA + "H100, NVL"),
    _Peak(r"NVIDIA GH200 \d+GB.*", 989.4, 494.7, _NVIDIA + "GH200"),
    _Peak(r"NVIDIA H200", 989.4, 494.7, _NVIDIA + "H200, SXM"),
    _Peak(r"NVIDIA H200 NVL", 835.5, 417.5, _NVIDIA + "H200, NVL"),
    _Peak(r"NVIDIA B200", 2250, 1100, _NVIDIA + "HGX B200"),
    _Peak(r"NVIDIA GB200", 2500, 1250, _NVIDIA + "GB200"),
)

# GB/s of the memory of one GPU, by the same data sheets.
_BANDWIDTHS = (
    (r"NVIDIA A100-(SXM4|PCIE)-40GB", 1555),
    (r"NVIDIA A100-SXM4-80GB", 2039),
    (r"NVIDIA A100 80GB PCIe", 1935),
    (r"NVIDIA A10G?", 600),
    (r"NVIDIA L4", 300),
    (r"NVIDIA L40S", 864),
    (r"NVIDIA H100 80GB HBM3", 3350),
    (r"NVIDIA H100 PCIe", 2000),
    (r"NVIDIA H100 NVL", 3900),
    (r"NVIDIA GH200 480GB", 4000),
    (r"NVIDIA H200( NVL)?", 4800),
    (r"NVIDIA G?B200", 8000),
)


def memory_bandwidth(device_kind: str) -> float | None:
    """Returns the bytes/s between an NVIDIA GPU and its memory, or None if not known.

    Args:
      device_kind: `jax.Device.device_kind`, such as 'NVIDIA H100 80GB HBM3'.
    """
    for pattern, rate in _BANDWIDTHS:
        if re.fullmatch(pattern, device_kind):
            return rate * 1e9
    return None


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of a device, or None where we do not know it (any CPU).

    Dense matrix products at JAX's default precision, per JAX device: float32 runs as
    TF32 on NVIDIA GPUs from Ampere on, and as bfloat16 on TPUs.

    Args:
      device_kind: `jax.Device.device_kind`, such as 'TPU v4' or 'NVIDIA H100 80GB HBM3'.
      dtype: 'bfloat16' or 'float32', the dtype that the model computes in.

    Raises:
      ValueError: If the dtype is neither.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"unknown dtype {dtype!r}; allowed: bfloat16, float32")
    if re.search(r"\bMIG\b", device_kind):
        return None
    for peak in _PEAKS:
        if re.fullmatch(peak.pattern, device_kind):
            rate = peak.bfloat16 if dtype == "bfloat16" else peak.float32
            return None if rate is None else rate * 1e12
    return None
