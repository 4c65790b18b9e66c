"""Processes that write a checkpoint wait for each other, but not for ever."""

from vmoe_prc.checkpoints.barriers import CheckpointBarriers

SET = ["set_value_start", "set_value_end"]
WRITE = ["async_write_complete.7", "async_commit_complete.7"]


def waited_at(keys):
    """Returns the barriers at which a process waits whose threads come to `keys`."""
    waited = []
    barriers = CheckpointBarriers(lambda key, timeout_ms: waited.append(key))
    for key in keys:
        barriers(key=key, timeout_ms=1)
    return waited


def test_a_process_waits_at_every_barrier():
    keys = [*SET, *WRITE, *SET] * 3
    assert waited_at(keys) == keys


def test_a_process_that_could_not_write_or_commit_waits_no_more():
    saved = [*SET, *WRITE, *SET]
    assert waited_at([*saved, *SET, *SET]) == [*saved, *SET]
    assert waited_at([*saved, *SET, WRITE[0], *SET, *SET]) == [*saved, *SET, WRITE[0]]
