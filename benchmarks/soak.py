"""Kills a run again and again, and compares what it becomes with a run that was left alone.

    python -m benchmarks.soak --kills=30

SIGKILL or SIGTERM, drawn at random, come while the program starts, between steps, and while
a checkpoint is being written; after each the same command is given again. Prints the faults,
the steps that had to be repeated, and every difference from the undisturbed run: exit
status 1 if there is one. On CPU; a small model on the digits.
"""

import argparse
import collections
import dataclasses
import functools
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from configs import digits_prc
from vmoe_prc.checkpoints.manager import restore_part
from vmoe_prc.errors import PREEMPTED_STATUS
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER
from vmoe_prc.workdir.metrics import METRICS_FILE, read_metrics

STEPS_PER_FAULT = 20
SAVE_EVERY = 5
MOMENTS = {"starting": 0.2, "between steps": 0.4, "writing": 0.4}
SIGNALS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.3}


def get_config(steps: str):
    """The recipe of the runs: this file is their --config, with the steps after a colon."""
    config = digits_prc.get_config()
    with config.unlocked():
        del config.dataset["test_pairs"]
        config.dataset.test.split = "test[:64]"
        config.train_steps = int(steps)
        config.model.update({"hidden_size": 16, "patch_size": (8, 8)})
        config.model.encoder.update({"num_layers": 2, "mlp_dim": 32})
        config.model.encoder.moe.update({"layers": (1,), "group_size": 17 * 4, "dropout_rate": 0.1})
        config.ema_decay = 0.9
        config.optimizer.learning_rate.warmup_steps = 5
        config.evaluate.every_steps = int(steps)
        config.save_checkpoint.every_steps = SAVE_EVERY
        config.report_progress.every_steps = 1
    return config


@dataclasses.dataclass(frozen=True)
class Fault:
    """One kill.

    Attributes:
      signal: What was sent.
      moment: When it was to come.
      unfinished: Checkpoints that it left unfinished.
      reached: The last step that was reported before, None if none was.
      newest: Step of the newest complete checkpoint after it.
      status: Exit status, negative for a signal.
    """

    signal: signal.Signals
    moment: str
    unfinished: int
    reached: int | None
    newest: int
    status: int


class Attempt:
    """A program that trains in `workdir`."""

    def __init__(self, workdir: pathlib.Path, steps: int):
        self.workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        self._log = workdir / f"log{len(list(workdir.glob('log*')))}.txt"
        cache = workdir.parent / "compiled"
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        config = f"--config={__file__}:{steps}"
        data = [
            f"--config.dataset.{s}.data_dir={workdir.parent / 'data'}" for s in ("train", "test")
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vmoe_prc.main", config, f"--workdir={workdir}", *data],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def last(self, pattern: str) -> int | None:
        """The number in the last line of the log that matches."""
        numbers = re.findall(pattern, self._log.read_text())
        return int(numbers[-1].replace(",", "")) if numbers else None

    @property
    def step(self) -> int | None:
        """The last step reported."""
        return self.last(r"step ([\d,]+) of ")

    @property
    def resumed(self) -> int | None:
        """The step from which it resumed."""
        return 0 if self.last(r"new run: (\d+)") else self.last(r"resuming after step ([\d,]+)")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Waits until it has ended, and returns its exit status."""
        return self._process.wait()

    def checkpoints(self) -> tuple[list[int], int]:
        """Steps of the complete checkpoints, and how many are unfinished."""
        folder = self.workdir / CHECKPOINT_FOLDER
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        complete = sorted(int(name) for name in names if name.isdigit())
        return complete, len(names) - len(complete)

    def text(self) -> str:
        """Its log."""
        return self._log.read_text()


def disturb(
    start: Callable[[], Attempt], target: int, rng: random.Random, startup: Callable[[], float]
) -> tuple[Attempt, Fault]:
    """Starts a program and kills it at random, not before step `target` unless it still starts.

    Args:
      start: Starts the program.
      target: The step.
      rng: Draws signal and moment.
      startup: Measures the seconds that a start takes.
    """
    [number] = rng.choices(list(SIGNALS), list(SIGNALS.values()))
    [moment] = rng.choices(list(MOMENTS), list(MOMENTS.values()))
    longest = startup() if moment == "starting" else 0.0
    attempt = start()
    if moment == "starting":
        time.sleep(rng.uniform(0, longest))
    else:
        while attempt.running and (attempt.step or 0) < target:
            time.sleep(0.01)
        while attempt.running and moment == "writing" and not attempt.checkpoints()[1]:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
    attempt.send(number)
    status = attempt.wait()
    complete, unfinished = attempt.checkpoints()
    if attempt.step is None:
        unfinished = 0  # They are from before.
    fault = Fault(number, moment, unfinished, attempt.step, max(complete, default=0), status)
    return attempt, fault


def soak(directory: pathlib.Path, kills: int, seed: int) -> int:
    """Runs both, prints what happened; returns the number of differences and failures."""
    rng = random.Random(seed)
    steps = STEPS_PER_FAULT * (kills + 1)
    # Compiles, so that no other start has to.
    undisturbed = Attempt(directory / "undisturbed", steps)
    if undisturbed.wait():
        sys.exit(undisturbed.text())
    startup = functools.cache(lambda: time_to_start(directory / "started", steps))
    faults, failures, newest = [], [], 0
    start = functools.partial(Attempt, directory / "disturbed", steps)
    for i in range(kills):
        target = STEPS_PER_FAULT * i + rng.randrange(1, STEPS_PER_FAULT)
        attempt, fault = disturb(start, target, rng, startup)
        print(f"{i + 1:3} {describe(fault)}", flush=True)
        failures += [*check(fault, attempt), *wrong_step(attempt, newest)]
        faults.append(fault)
        newest = fault.newest
    attempt = start()
    if attempt.wait():
        failures.append(f"the last start failed: {attempt.text()[-500:]}")
    failures += wrong_step(attempt, newest)
    failures += differences(directory / "disturbed", directory / "undisturbed")
    print(report(faults, failures, steps))
    return len(failures)


def time_to_start(workdir: pathlib.Path, steps: int) -> float:
    """Measures the seconds until a program that is compiled reports its first step."""
    start = time.monotonic()
    attempt = Attempt(workdir, steps)
    while attempt.running and attempt.step is None:
        time.sleep(0.01)
    attempt.send(signal.SIGKILL)
    attempt.wait()
    return time.monotonic() - start


def check(fault: Fault, attempt: Attempt) -> list[str]:
    """Returns what is wrong with how a program ended."""
    expected = {-fault.signal}
    if fault.signal == signal.SIGTERM:
        # Before its first line it has not yet asked for the signal.
        expected = {PREEMPTED_STATUS} if fault.reached else {PREEMPTED_STATUS, -fault.signal}
    if fault.status in expected:
        return []
    return [f"exit status {fault.status} after {describe(fault)}: {attempt.text()[-500:]}"]


def wrong_step(attempt: Attempt, newest: int) -> list[str]:
    """Returns the error of a program that resumed from another step than the newest saved."""
    if attempt.resumed in (None, newest):
        return []
    return [f"resumed from {attempt.resumed} and not from {newest}"]


def lost(fault: Fault) -> int:
    """Steps that must be repeated."""
    return max((fault.reached or 0) - fault.newest, 0)


def describe(fault: Fault) -> str:
    """One line on a fault."""
    reached = "before a step" if fault.reached is None else f"at step {fault.reached}"
    unfinished = ", a checkpoint unfinished" if fault.unfinished else ""
    name = fault.signal.name
    return f"{name} {fault.moment}, {reached}{unfinished}: {lost(fault)} steps lost"


def differences(a: pathlib.Path, b: pathlib.Path, lost_metrics: bool = False) -> list[str]:
    """Names arrays that are not equal bit for bit, and metrics that are not equal.

    Args:
      a: A work directory.
      b: The one of the undisturbed run.
      lost_metrics: Whether `a` may lack metrics of steps.
    """
    found = []
    for part in ("params", "opt_state", "ema_params"):
        first, second = (
            dict(
                jax.tree_util.tree_leaves_with_path(restore_part(w / CHECKPOINT_FOLDER, name=part))
            )
            for w in (a, b)
        )
        for path in first.keys() | second.keys():
            x, y = np.asarray(first.get(path)), np.asarray(second.get(path))
            if x.dtype != y.dtype or x.tobytes() != y.tobytes():
                found.append(f"{part}{jax.tree_util.keystr(path)} differs")
    first, second = (
        {
            m["step"]: {k: v for k, v in m.items() if k != "time" and not k.startswith("speed/")}
            for m in read_metrics(w / METRICS_FILE)
        }
        for w in (a, b)
    )
    steps = first.keys() & second.keys()
    found += [f"metrics of step {s} differ" for s in sorted(steps) if first[s] != second[s]]
    same_steps = first.keys() <= second.keys() if lost_metrics else first.keys() == second.keys()
    return found if same_steps else [*found, f"{len(first)} and {len(second)} steps"]


def report(faults: list[Fault], failures: list[str], steps: int) -> str:
    """The summary that a soak ends with."""
    counts = collections.Counter((f.signal.name, f.moment) for f in faults)
    kinds = ", ".join(f"{n} {name} {moment}" for (name, moment), n in sorted(counts.items()))
    repeated = [lost(f) for f in faults]
    return "\n".join(
        [
            f"faults injected: {len(faults)} in {steps} steps ({kinds}); "
            f"{sum(f.unfinished > 0 for f in faults)} left a checkpoint unfinished",
            f"steps lost: {sum(repeated)}, at most {max(repeated, default=0)} at once, "
            f"with a checkpoint every {SAVE_EVERY} steps",
            f"differences found: {len(failures)}",
            *failures,
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the soak test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of signals and moments")
    parser.add_argument("--workdir", help="an empty directory to keep; by default a temporary one")
    options = parser.parse_args(arguments)
    if options.workdir:
        return min(soak(pathlib.Path(options.workdir).absolute(), options.kills, options.seed), 1)
    with tempfile.TemporaryDirectory() as directory:
        return min(soak(pathlib.Path(directory), options.kills, options.seed), 1)


if __name__ == "__main__":
    sys.exit(main())
