"""A run that is killed twice ends as one that was not."""

import numpy as np
import pytest

from benchmarks import soak
from vmoe_prc.checkpoints.manager import Checkpointer


@pytest.mark.slow
@pytest.mark.usefixtures("programs_on_one_device")
def test_two_kills(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(soak, "STEPS_PER_FAULT", 10)
    assert soak.main(["--kills=2", "--seed=1", f"--workdir={tmp_path}"]) == 0
    printed = capfd.readouterr().out
    assert "faults injected: 2 in 30 steps" in printed
    assert "differences found: 0" in printed


def write_run(workdir, kernel, loss):
    parts = ("params", "opt_state", "ema_params")
    state = {part: {"kernel": np.asarray(kernel, np.float32)} for part in parts}
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        checkpointer.save(1, state)
    (workdir / "metrics.jsonl").write_text(f'{{"step": 1, "time": 5, "train/loss": {loss}}}\n')


def test_differences_are_named(tmp_path):
    write_run(tmp_path / "a", [0.0, 1.0], 2.5)
    write_run(tmp_path / "b", [-0.0, 1.0], 2.0)
    assert soak.differences(tmp_path / "a", tmp_path / "a") == []
    found = soak.differences(tmp_path / "a", tmp_path / "b")
    assert "params['kernel'] differs" in found
    assert "metrics of step 1 differ" in found
