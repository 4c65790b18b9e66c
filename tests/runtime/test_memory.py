"""The memory that a process may use, and compiled steps that are larger."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.errors import RunError
from vmoe_prc.runtime import control_groups, memory


def test_a_compiled_step_has_to_fit(monkeypatch):
    size = 2**20
    step = jax.jit(lambda state, batch: jnp.sort(state) @ batch)
    arguments = 2 * (jax.ShapeDtypeStruct((size // 4,), jnp.float32),)
    device = jax.devices()[:1]
    # Two arguments, and what is sorted.
    monkeypatch.setattr(memory, "host_memory", lambda: 4 * size)
    memory.check_program_fits(step, arguments, device, copied=size // 2)
    with pytest.raises(RunError, match=r"out of memory"):
        memory.check_program_fits(step, arguments, device, copied=2 * size)
    memory.check_program_fits(step, arguments, device)
    monkeypatch.setattr(memory, "host_memory", lambda: 5 * size // 2)
    with pytest.raises(RunError, match=r"out of memory: a step of .* needs .* GiB .*; use smaller"):
        memory.check_program_fits(step, arguments, device)


def test_limits_of_groups_and_processes_count(tmp_path, monkeypatch):
    whole = memory.device_memory(jax.devices()[:1])
    (tmp_path / "membership").write_text("0::/job/step\n")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    assert memory.device_memory(jax.devices()[:1]) == whole
    (tmp_path / "job" / "memory.max").write_text(f"{whole // 2}\n")
    assert memory.device_memory(jax.devices()[:1]) == whole // 2
    (tmp_path / "membership").write_text("4:memory:/job\n3:cpu:/\n")
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text(f"{whole // 3}\n")
    assert memory.device_memory(jax.devices()[:1]) == whole // 3
    (tmp_path / "membership").write_text("")
    limits = {resource.RLIMIT_DATA: whole // 2, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    assert memory.host_memory() == whole // 2
    # What libraries have taken by now is not there any more.
    limits[resource.RLIMIT_DATA] = 2**45
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 2**22)
    used = 2**44 - memory.device_memory(jax.devices()[:1])
    assert used == 0  # of the limit there is more than the machine has
    limits[resource.RLIMIT_DATA] = 2**43
    used = 2**43 - memory.device_memory(jax.devices()[:1])
    assert used > 100 * 2**20
    held = np.ones(2**27, np.uint8)
    assert 2**43 - memory.device_memory(jax.devices()[:1]) >= used + held.nbytes // 2
