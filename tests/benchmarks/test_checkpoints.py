"""Sizes of checkpoints, and the ratios of writing them; no time is asserted."""

import jax
import pytest

from benchmarks import checkpoints
from vmoe_prc.checkpoints.manager import Checkpointer
from vmoe_prc.config import complete


def cells(text):
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines()
    )
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_table_has_the_bytes_of_the_arrays_and_shares_them_among_the_hosts(capsys):
    assert checkpoints.main(["--recipes=Digits", "--bandwidth=0.0001", "--hosts=1,4"]) == 0
    [row] = cells(capsys.readouterr().out)
    config = complete(checkpoints.importlib.import_module("configs.digits_prc").get_config())
    state = checkpoints.state_of(config)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    assert row["parameters"] == f"{count / 1e6:.1f} M"
    # Adam: parameters and two moments in float32, and a few counters.
    size = float(row["GB"]) * 1e9
    assert size == pytest.approx(3 * 4 * count, rel=0.2)
    assert float(row["s, 1 host"]) == pytest.approx(size / 1e5, rel=0.2)
    assert float(row["s, 4 hosts"]) == pytest.approx(float(row["s, 1 host"]) / 4, abs=0.01)


@pytest.mark.slow
def test_states_are_written_as_a_run_does(capsys, monkeypatch, tmp_path):
    written = []
    save = Checkpointer.save
    monkeypatch.setattr(
        Checkpointer,
        "save",
        lambda self, step, state: (written.append(jax.tree.leaves(state)), save(self, step, state)),
    )
    flags = ["--recipes=Digits", f"--write={tmp_path}", "--repetitions=2", "--hosts=1"]
    assert checkpoints.main(flags) == 0
    [row] = cells(capsys.readouterr().out)
    assert len(written) == 3
    # Random numbers: zeros would be compressed to nothing.
    assert all(x.std() > 0.5 for x in written[0] if x.size > 1 and x.dtype.kind == "f")
    assert float(row["CPU s a GB"]) > 0 and float(row["time relative to a plain file"]) > 0
    assert 0 <= float(row["training waits"].rstrip("%")) <= 100
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        checkpoints.main(["--recipes=Digit"])
    assert end.value.code == 2
    assert "--recipes: 'Digit' is none of Digits, " in capsys.readouterr().err
