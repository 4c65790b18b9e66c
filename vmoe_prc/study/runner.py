"""Runs a study: one run after the other, each in a separate process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from vmoe_prc.runtime.signals import notice_handler
from vmoe_prc.study.plan import (
    FAILURE_FILE,
    LOG_FILE,
    PlannedRun,
    Study,
    robustness_path,
)
from vmoe_prc.workdir.layout import SUMMARY_FILE
from vmoe_prc.workdir.paths import absolute_path

Say = Callable[[str], None]


def carry_out(study: Study, after_run: Callable[[], object], say: Say = print) -> list[PlannedRun]:
    """Runs everything that is not done; a run that fails does not end the study.

    Args:
      study: The study.
      after_run: Called after each run.
      say: Takes the lines that show progress.

    Returns:
      The runs that failed.
    """
    missing = [run for run in study.runs if study.state(run) != "done"]
    say(f"{study.source}: {len(study.runs)} runs, {len(study.runs) - len(missing)} of them done")
    failed, start = [], time.monotonic()
    for i, run in enumerate(missing):
        prefix = f"[{i + 1}/{len(missing)} {run.name}]"
        say(f"{prefix} {run.workdir / LOG_FILE}")
        status = _run_apart(study, run, lambda line, prefix=prefix: say(f"{prefix} {line}"))
        if status:
            failed.append(run)
        left = (time.monotonic() - start) / (i + 1) * (len(missing) - i - 1)
        outcome = f"failed (status {status})" if status else "done"
        say(f"{prefix} {outcome}; {len(missing) - i - 1} to go, about {left / 60:.0f} min")
        after_run()
    return failed


def execute(study: Study, run: PlannedRun) -> None:
    """Trains a run and measures its robustness, in this process; resumes a run that has begun.

    With several processes all of them call it.

    Raises:
      ConfigError: If the configuration cannot be used.
      CheckpointError: If the work directory has a checkpoint that does not fit.
    """
    import jax

    from vmoe_prc.train import loop

    if not (run.workdir / SUMMARY_FILE).exists():
        summary = loop.train_and_evaluate(run.config, run.workdir)
        if jax.process_index() == 0:
            print(summary)
    if study.options["robustness"]:
        _measure_robustness(study, run)


def _measure_robustness(study: Study, run: PlannedRun) -> None:
    import jax

    from vmoe_prc.analysis.opened_run import open_run
    from vmoe_prc.analysis.robustness import robustness_table
    from vmoe_prc.workdir.atomic import atomic_write

    options = study.options["robustness"]
    opened, split = open_run(run.workdir), options["split"]
    if options["examples"]:
        opened = opened.with_examples(split, options["examples"])
    table = robustness_table(opened, split, options["perturbations"])
    if jax.process_index() != 0:
        return
    with atomic_write(robustness_path(run)) as path, path.open("w") as file:
        table.to_csv(file, index=False)


def _run_apart(study: Study, run: PlannedRun, say: Say) -> int:
    """Executes a run in a process; returns its exit status and saves the end of a failed log."""
    command = [
        *(sys.executable, "-m", "vmoe_prc.study", f"--study={study.source}"),
        *(f"--workdir={study.workdir}", f"--only={run.name}", "--num_processes=1"),
    ]
    # The evaluation is compiled once for all seeds of an arm.
    cache = {"JAX_COMPILATION_CACHE_DIR": absolute_path(study.workdir / "compiled")}
    env = {**cache, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / FAILURE_FILE).unlink(missing_ok=True)
    lines: list[str] = []
    # An object store writes a file when it is closed.
    remote = "://" in str(run.workdir)
    with (
        (run.workdir / LOG_FILE).open("a", encoding="utf-8") as log,
        child_process(command, env) as process,
    ):
        assert process.stdout is not None  # a pipe of `child_process`
        for line in process.stdout:
            log.write(line)
            if not remote:
                log.flush()
            say(line.rstrip())
            lines = [*lines[-19:], line]
        status = process.wait()
    if status:
        text = f"exit status {status}\n{''.join(lines)}"
        (run.workdir / FAILURE_FILE).write_text(text, encoding="utf-8")
    return status


# Asks Linux for SIGTERM when the parent ends, and becomes the program, which keeps that.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) or os.getppid() != int(sys.argv[1]):
    sys.exit("the study has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _ending_with_parent(command: Sequence[str]) -> list[str]:
    """Returns a command whose process gets SIGTERM when this one ends, however it ends."""
    if sys.platform != "linux":
        return [*command]
    return [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command]


@contextlib.contextmanager
def child_process(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """Starts a process that never outlives this one.

    On SIGTERM or an interrupt it gets SIGTERM, to save its work; on a second one, see
    `runtime.signals`, it is killed. On Linux it gets SIGTERM also when this process is killed.
    Bytes of its output that are not UTF-8 are replaced.

    Args:
      command: Program and arguments.
      env: Environment variables.
    """

    def end(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + signal.SIGTERM)

    # Set before the process exists, so that no signal can come between.
    handler = notice_handler(end, end)
    numbers = (signal.SIGTERM, signal.SIGINT)
    # In the background of a shell Ctrl-C is ignored.
    heard = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {n: signal.signal(n, handler) for n in heard}
    process = None
    try:
        process = subprocess.Popen(
            _ending_with_parent(command),
            env=dict(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        yield process
    finally:
        try:
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait()
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            for number, before in previous.items():
                signal.signal(number, before)


def failure(run: PlannedRun) -> str:
    """Returns the last line that a failed run wrote."""
    lines = (run.workdir / FAILURE_FILE).read_text(encoding="utf-8").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
