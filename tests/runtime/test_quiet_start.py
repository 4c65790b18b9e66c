"""Notes of TensorFlow's start are hidden; all else that is written meanwhile is not."""

import os

import pytest

from vmoe_prc.runtime.quiet_start import without_notes


def test_only_notes_are_held_back(capfd):
    with pytest.raises(ImportError), without_notes():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are\n")
        os.write(2, b"I0000 00:00:1795832212.623756 24671 port.cc:153] oneDNN custom\n")
        os.write(2, b"E0000 00:00:1795832212.623756 24671 cuda.cc:1] no such library\n")
        raise ImportError
    os.write(2, b"I0000 later\n")
    assert [line[:5] for line in capfd.readouterr().err.splitlines()] == ["E0000", "I0000"]
