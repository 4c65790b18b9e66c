"""The compilation cache: on by default, as JAX's own variables say otherwise."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, jax
from vmoe_prc.runtime.compilation_cache import use_compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
use_compilation_cache()
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8)))
count = sum(event == "/jax/compilation_cache/cache_hits" for event in hits)
print(json.dumps([jax.config.jax_compilation_cache_dir, count]))
"""


@pytest.fixture
def run(tmp_path):
    """Compiles in a fresh process; returns the cache's directory and the number of hits."""

    def run(**variables):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(tmp_path),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **variables,
        }
        command = [sys.executable, "-c", CODE]
        output = subprocess.run(
            command, env=kept | variables, check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(output.stdout)

    return run


def test_second_process_does_not_compile(run, tmp_path):
    directory, hits = run()
    assert (directory, hits) == (str(tmp_path / "vmoe_prc" / "jax"), 0)
    assert any((tmp_path / "vmoe_prc" / "jax").iterdir())
    _, hits = run()
    assert hits > 0


def test_variables_of_jax_win(run, tmp_path):
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))[0] == str(tmp_path / "mine")
    assert run(JAX_ENABLE_COMPILATION_CACHE="false") == [None, 0]
    assert not (tmp_path / "vmoe_prc").exists()
