"""Peak rates: which device names are known, and which must not be mistaken."""

import pytest

from vmoe_prc.runtime.peaks import memory_bandwidth, peak_flops


@pytest.mark.parametrize(
    ("device_kind", "bfloat16", "float32"),
    [
        ("TPU v3", 61.5e12, 61.5e12),
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5e", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("TPU7x", 1153.5e12, 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 156e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA B200", 2250e12, 1100e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla T4", None, 8.1e12),
    ],
)
def test_known_devices(device_kind, bfloat16, float32):
    assert peak_flops(device_kind, "bfloat16") == bfloat16
    assert peak_flops(device_kind, "float32") == float32


@pytest.mark.parametrize(
    "device_kind",
    [
        "cpu",
        "",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A1000",
        "NVIDIA L40",
        "TPU v50",
    ],
)
def test_unknown_devices_have_no_peak(device_kind):
    assert peak_flops(device_kind, "bfloat16") is None
    assert peak_flops(device_kind, "float32") is None


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="unknown dtype 'int8'; allowed: bfloat16"):
        peak_flops("TPU v4", "int8")


@pytest.mark.parametrize(
    ("device_kind", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-40GB", 1.555e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A1000", None),
        ("cpu", None),
    ],
)
def test_bandwidth_of_the_memory(device_kind, bandwidth):
    assert memory_bandwidth(device_kind) == bandwidth
