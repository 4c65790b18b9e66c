"""The memory that a process may use, and compiled steps that are larger."""

import resource

import jax
import jax.numpy as jnp
import pytest

from vmoe_prc.errors import RunError
from vmoe_prc.runtime import memory


def test_a_compiled_step_has_to_fit(monkeypatch):
    size = 2**20
    step = jax.jit(lambda state, batch: jnp.sort(state) @ batch)
    arguments = 2 * (jax.ShapeDtypeStruct((size // 4,), jnp.float32),)
    device = jax.devices()[:1]
    # Two arguments, and what is sorted.
    monkeypatch.setattr(memory, "host_memory", lambda: 4 * size)
    memory.check_program_fits(step, arguments, device)
    monkeypatch.setattr(memory, "host_memory", lambda: 5 * size // 2)
    with pytest.raises(RunError, match=r"out of memory: a step of .* needs .* GiB .*; use smaller"):
        memory.check_program_fits(step, arguments, device)


def test_limits_of_containers_and_processes_count(tmp_path, monkeypatch):
    whole = memory.device_memory(jax.devices()[:1])
    files = [tmp_path / name for name in ("missing", "max", "bytes")]
    files[1].write_text("max\n")
    files[2].write_text(f"{whole // 2}\n")
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", files)
    assert memory.device_memory(jax.devices()[:1]) == whole // 2
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (whole // 4, resource.RLIM_INFINITY))
    assert memory.device_memory(jax.devices()[:1]) == whole // 4
