"""Processes that write a checkpoint wait for each other, but not for ever."""

import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from vmoe_prc.checkpoints.barriers import CheckpointBarriers
from vmoe_prc.checkpoints.manager import Checkpointer

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


def test_these_are_the_barriers_of_orbax(tmp_path, monkeypatch):
    class TwoProcesses:
        """JAX, for the module of Orbax that writes in a thread."""

        def __getattr__(self, name):
            return (lambda: 2) if name == "process_count" else getattr(jax, name)

    keys = []
    monkeypatch.setattr(sys.modules[ocp.AsyncCheckpointer.__module__], "jax", TwoProcesses())
    monkeypatch.setattr(
        ocp.multihost, "get_barrier_sync_fn", lambda: lambda *, key, timeout_ms: keys.append(key)
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(7, {"a": jnp.ones(2)})
    names = [*SET, "async_write_complete", "async_commit_complete", *SET]
    assert len(keys) == len(names)
    assert all(name in key for name, key in zip(names, keys, strict=True)), keys
