"""Cores by affinity and by the quotas of control groups."""

import os

import pytest

from vmoe_prc.runtime import control_groups, cores


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, [4]),
        ("0::/../outside", {"cpu.max": "200000 100000"}, [2]),
        (
            "3:cpu,cpuacct:/job\n2:memory:/job\n1:name=systemd:/",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            [0.5],
        ),
        ("0::/", {"cpu.max": "damaged"}, []),
    ],
)
def test_quotas(tmp_path, monkeypatch, membership, files, expected):
    (tmp_path / "membership").write_text(f"{membership}\n")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert list(cores.quotas()) == expected


def test_the_smallest_limit_counts(monkeypatch):
    allowed = len(os.sched_getaffinity(0))
    for limits, expected in (([], allowed), ([0.2], 1), ([allowed + 9.0], allowed)):
        monkeypatch.setattr(cores, "quotas", lambda found=limits: iter(found))
        assert cores.num_cores() == expected
