"""Eight virtual CPU devices, the golden arrays, and a headless browser."""

import gc
import os
import shutil
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation, and most of that goes into making programs fast.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
# XLA ends at flags that it does not know, and later versions have no other emitters.
if metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Each core has a worker of pytest-xdist: more threads of XLA in each would only take turns.
os.environ.setdefault("PJRT_NPROC", "1")

# Processes and sessions share all that they compile, also what takes less than a second.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import filelock
import numpy as np
import pytest
import typecheck
from hypothesis import settings

typecheck.install()

settings.register_profile("vmoe_prc", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("vmoe_prc")

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
GOLDEN = Path(__file__).parent / "data" / "golden"


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers():
    number = yield
    # One more than cores, unless a number is asked for: tests wait for disks and other processes.
    return number if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") else number + 1


def pytest_collection_finish():
    # What is imported by now stays, and no collection of garbage has to look at it again.
    gc.collect()
    gc.freeze()
    # The default looks for cycles so often that it takes a twentieth of the time.
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes a directory of the session once for all of its processes.

    `made_once(name, make)` calls `make(directory)` in the first process that asks for it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made_once(name, make):
        directory, done = root / name, root / f"{name}.done"
        with filelock.FileLock(root / f"{name}.lock"):
            if not done.exists():
                directory.mkdir()
                make(directory)
                done.write_text("\n".join(path.name for path in directory.iterdir()))
        return directory

    return made_once


@pytest.fixture(scope="session")
def data_dir(made_once):
    """Directory where TFDS has prepared `tiny_jpegs`, in several files."""

    def make(path):
        import tensorflow_datasets as tfds
        from tiny_jpegs import TinyJpegs

        config = tfds.download.DownloadConfig(num_shards=4)
        TinyJpegs(data_dir=path).download_and_prepare(download_config=config)

    return str(made_once("tfds", make))


@pytest.fixture(scope="session")
def digits_dir(made_once):
    """Directory where TFDS has prepared the digits."""

    def make(path):
        from small_run import small_config

        from vmoe_prc.data.builders import open_builder

        open_builder(small_config(str(path)).dataset.test)

    return str(made_once("digits", make))


@pytest.fixture(scope="session")
def finished(made_once, digits_dir):
    """A run that was never interrupted, and what it printed."""

    def make(workdir):
        from small_run import small_config

        from vmoe_prc.train import loop

        summary = loop.train_and_evaluate(small_config(digits_dir), workdir)
        workdir.with_suffix(".txt").write_text(summary)

    workdir = made_once("finished", make)
    return workdir, workdir.with_suffix(".txt").read_text()


@pytest.fixture
def three_steps(monkeypatch, capfd, tmp_path):
    """Takes three steps of a recipe on one device, by the command, in this process.

    `three_steps(recipe, **changes)` returns the work directory.
    """

    def three_steps(recipe, **changes):
        import jax

        from vmoe_prc import main

        [device, *_] = jax.devices()
        monkeypatch.setattr(jax, "devices", lambda: [device])
        changes |= {"train_steps": 3, "optimizer.learning_rate.warmup_steps": 1}
        arguments = [
            *(f"--workdir={tmp_path}/run", f"--config={recipe}"),
            *(f"--config.{name}={value}" for name, value in changes.items()),
        ]
        assert main.main(arguments) == 0, capfd.readouterr().err[-3000:]
        return tmp_path / "run"

    return three_steps


@pytest.fixture
def programs_on_one_device(monkeypatch):
    """Programs that a test starts see one virtual device; this process goes on with eight."""
    import jax

    jax.devices()  # Reads the flags; without it, all later tests in this process had one device.
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("count=8", "count=1"))


@pytest.fixture(scope="module", autouse=True)
def shared_run_unchanged(tmp_path_factory):
    """Every test of the session reads the directory of `finished`; none may add to it."""
    root = tmp_path_factory.getbasetemp()
    workdir = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "finished"
    yield
    done = workdir.with_suffix(".done")
    if done.exists() and done.stat().st_size:
        added = {path.name for path in workdir.iterdir()} - set(done.read_text().split("\n"))
        assert not added, f"a test added {sorted(added)} to the shared run"


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


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium by its driver, with logs of the console and of the network."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        assert not os.environ.get("CI"), "chromium and chromium-driver must be installed in CI"
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()
