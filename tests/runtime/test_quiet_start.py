"""Notes of TensorFlow's start are hidden; all else that is written meanwhile is not."""

import importlib.util
import os
import sys

import pytest

from vmoe_prc.runtime import quiet_start
from vmoe_prc.runtime.quiet_start import without_notes


def test_only_notes_are_held_back(capfd):
    with pytest.raises(ImportError), without_notes():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are\n")
        os.write(2, b"I0000 00:00:1795832212.623756 24671 port.cc:153] oneDNN custom\n")
        os.write(2, b"E0000 00:00:1795832212.623756 24671 cuda.cc:1] no such library\n")
        raise ImportError
    os.write(2, b"I0000 later\n")
    assert [line[:5] for line in capfd.readouterr().err.splitlines()] == ["E0000", "I0000"]


def test_a_library_may_ask_for_tensorflow_before_it_is_loaded(tmp_path, monkeypatch, capfd):
    """TensorFlow loads without its notes, and without Keras."""
    text = "import os\nos.write(2, b'I0000 a note\\nE0000 an error\\n')\n"
    text += "keras = os.environ['TF_USE_LEGACY_KERAS']\n"
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    (tmp_path / "tensorflow.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    quiet_start.quiet_tensorflow()
    assert importlib.util.find_spec("tensorflow").origin == str(tmp_path / "tensorflow.py")
    assert importlib.import_module("tensorflow").keras == "1"
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert capfd.readouterr().err == "E0000 an error\n"
    assert not any(isinstance(finder, quiet_start._Finder) for finder in sys.meta_path)
    monkeypatch.delitem(sys.modules, "tensorflow")
