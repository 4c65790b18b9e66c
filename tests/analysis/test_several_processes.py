"""Analysis by two processes, each of which reads half of the rows: the tables of one process."""

import json

import pandas as pd
import pytest
from several_commands import fewshot_regressions
from several_processes import ended, start_processes

from vmoe_prc import analyze

COMMANDS = {
    # Images are perturbed on the devices, and on the host that has them.
    "robustness.csv": ["robustness", "--perturbation=gaussian_noise=0.1", "--perturbation=jpeg=50"],
    "specialisation": ["specialisation", "--split=test_pairs"],
}


@pytest.mark.slow
def test_the_tables_of_two_processes_are_those_of_one(finished, tmp_path):
    def commands(folder):
        workdir = f"--workdir={finished[0]}"
        return [
            [*command, workdir, f"--output={tmp_path / folder / name}"]
            for name, command in COMMANDS.items()
        ]

    started = start_processes(2, [json.dumps(commands("two"))], "several_commands")
    for command in commands("one"):
        assert analyze.main(command) == 0
    statuses, outputs, errors = ended(started)
    assert statuses == [0, 0], errors
    # One of them speaks.
    assert [str(tmp_path) in text for text in outputs] == [True, False]
    # Of the six regressions each process has fitted three; both know all results.
    expected, fitted = fewshot_regressions()
    assert fitted == 6
    assert [json.loads(text.splitlines()[-1]) for text in outputs] == [[expected, 3]] * 2
    written = sorted(path.relative_to(tmp_path / "one") for path in tmp_path.glob("one/**/*.csv"))
    assert len(written) == 6
    for path in written:
        one, two = (pd.read_csv(tmp_path / folder / path) for folder in ("one", "two"))
        # Sums over devices are added up in another order, and a tie may be broken otherwise.
        pd.testing.assert_frame_equal(two, one, rtol=2e-3, atol=1e-3, obj=str(path))
    assert sorted(p.name for p in tmp_path.glob("two/**/*.png")) == sorted(
        p.name for p in tmp_path.glob("one/**/*.png")
    )
