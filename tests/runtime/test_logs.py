"""The log file of a run."""

import logging
import subprocess
import sys
import threading
import types

import pytest
from etils import epath

from vmoe_prc.runtime.logs import log_errors_of_threads, log_file


@pytest.mark.parametrize("full", ["/dev/full", "/dev/null/train-0.log"])
def test_a_full_disk_costs_the_lines_and_neither_the_run_nor_its_error(full, caplog, capfd):
    full = epath.Path(full)
    with pytest.raises(KeyError, match="the error"), log_file(full):
        for line in ("one", "two"):
            logging.getLogger("absl").warning(line)
        raise KeyError("the error")
    told = [message for message in caplog.messages if f"{full} cannot be written" in message]
    assert len(told) == 1
    assert {"one", "two"} <= set(caplog.messages)
    # What Python's handlers print of their own errors.
    assert "Logging error" not in capfd.readouterr().err


def test_lines_and_the_traceback_are_in_the_file(tmp_path):
    path = epath.Path(tmp_path / "train-0.log")
    with pytest.raises(KeyError), log_file(path):
        logging.getLogger("absl").warning("a line")
        raise KeyError("the error")
    text = path.read_text()
    assert "WARNING a line" in text and "Traceback" in text and "KeyError: 'the error'" in text


def test_an_error_in_a_thread_of_a_library_is_a_warning_and_any_other_keeps_its_traceback(
    monkeypatch, caplog, capsys
):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    log_errors_of_threads()
    error = RuntimeError("Event loop is closed")
    # As Python calls it for an error that C++ code of a library hands over in its own thread.
    arguments = types.SimpleNamespace(exc_type=RuntimeError, exc_value=error, object=None)
    thread = threading.Thread(target=lambda: sys.unraisablehook(arguments))
    thread.start()
    thread.join()
    # Threads of earlier tests may have such errors, too.
    messages = [x.getMessage() for x in caplog.records if x.thread == thread.ident]
    assert messages == ["a thread of a library: RuntimeError: Event loop is closed"]
    assert not capsys.readouterr().err
    thread = threading.Thread(target=Broken)
    thread.start()
    thread.join()
    assert "Traceback" in (printed := capsys.readouterr().err) and "KeyError: 'a bug'" in printed


class Broken:
    def __del__(self):
        raise KeyError("a bug")


def test_memory_that_runs_out_in_a_thread_of_a_library_ends_the_process():
    code = """if True:
        import sys, threading, time, types
        from vmoe_prc.runtime.logs import log_errors_of_threads
        log_errors_of_threads()
        lost = types.SimpleNamespace(exc_type=MemoryError, exc_value=MemoryError(), object=None)
        threading.Thread(target=lambda: sys.unraisablehook(lost)).start()
        time.sleep(60)  # for what the thread would have said
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: out of memory")
