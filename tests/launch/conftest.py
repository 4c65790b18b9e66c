"""Stand-ins for the programs of clusters."""

import pytest
from stand_ins import StandIns


@pytest.fixture
def stand_ins(tmp_path):
    """Programs that record how they are called; see `stand_ins.StandIns`."""
    (tmp_path / "bin").mkdir()
    return StandIns(tmp_path / "bin")
