"""The commands of the README's section on pods, followed as they stand."""

import re
import subprocess

import pytest
from stand_ins import ROOT

from benchmarks import cost

SECTION = (ROOT / "README.md").read_text().partition("## On a pod\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["tpu", "slurm", "gke"])
def test_each_block_runs_dry(stand_ins, block):
    stand_ins.program("docker")
    dry, launched = re.subn(r"^(launch/\w+\.sh \w+)", r"\1 --dry_run", block, flags=re.MULTILINE)
    result = subprocess.run(
        ["bash", "-euc", dry],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=stand_ins.env,
    )
    assert result.returncode == 0, result.stderr
    assert {call["argv"][0] for call in stand_ins.calls} <= {"docker"}
    assert launched >= 4
    assert len(result.stdout.splitlines()) >= launched


@pytest.mark.slow
def test_the_costs_are_those_that_its_command_prints(capsys):
    (devices,) = re.findall(r'benchmarks.cost --devices="(.*?)"', SECTION)
    cost.main([f"--devices={devices}"])
    table = capsys.readouterr().out.partition("| recipe")[2]
    assert table and table in SECTION
