"""The estimate of what hosts must read and decode."""

import argparse
import pathlib

import pytest

from benchmarks import feeding
from benchmarks.cost import Work

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "DATA.md"


@pytest.mark.slow
def test_the_page_has_the_table_of_its_command(capsys):
    assert feeding.main(["--cpu=1948", "--parent=15", "--sizes=8,32,128,512"]) == 0
    table = capsys.readouterr().out.strip()
    assert len(table.splitlines()) == 18
    assert table in PAGE.read_text()


def test_the_slowest_part_of_a_host_is_the_bound():
    work, device = Work(1, 512, 1e12), "NVIDIA H100 80GB HBM3"

    def delivered(cpu, parent):
        args = argparse.Namespace(cpu=cpu, parent=parent, cores=100, utilisation=0.1)
        [row] = feeding.rows_of("ImageNet-1K", work, device, [8], args)
        return float(row["100 cores deliver"].removesuffix("%"))

    # 512 images / 1e12 FLOPs * 0.1 * 989.4e12 FLOP/s * 8 devices = 405,258 images a second.
    assert delivered(cpu=2000, parent=1) == 12
    assert delivered(cpu=1000, parent=1) == 25
    assert delivered(cpu=1000, parent=50) == 5
    assert delivered(cpu=2, parent=1) == 100
