"""Eight virtual CPU devices, and the golden arrays."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Most of a test's time is compilation: half of it goes into optimising.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

# Processes and sessions share what they compile.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("vmoe_prc", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("vmoe_prc")

GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Directory where TFDS has prepared `tiny_jpegs`, in several files."""
    import tensorflow_datasets as tfds
    from tiny_jpegs import TinyJpegs

    path = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(num_shards=4)
    TinyJpegs(data_dir=path).download_and_prepare(download_config=config)
    return str(path)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """Directory where TFDS prepares the digits."""
    return str(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, digits_dir):
    """A run that was never interrupted, and what it printed."""
    from small_run import small_config

    from vmoe_prc.train import loop

    workdir = tmp_path_factory.mktemp("finished")
    summary = loop.train_and_evaluate(small_config(digits_dir), workdir)
    return workdir, summary


@pytest.fixture(scope="session")
def golden():
    """Loads a golden file by its name without extension."""
    return lambda name: np.load(GOLDEN / f"{name}.npz")


def assert_close(actual, expected, tolerance=1e-5):
    """Agreement to `tolerance`, relative or absolute, whichever is larger."""
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="session")
def close():
    return assert_close
