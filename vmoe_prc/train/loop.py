"""A whole run: trains, evaluates and saves, and leaves all of it in a work directory."""

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import ml_collections
from absl import logging
from etils import epath

from vmoe_prc.checkpoints.manager import Checkpointer
from vmoe_prc.config import ConfigError
from vmoe_prc.errors import PreemptedError, RunError
from vmoe_prc.evaluation.summary import format_summary
from vmoe_prc.runtime.compilation_cache import use_compilation_cache
from vmoe_prc.runtime.logs import log_file
from vmoe_prc.runtime.preemption import interrupt_as_preemption, preemption_notice
from vmoe_prc.runtime.processes import (
    connect_devices,
    end_in_time,
    is_main_process,
    process_zero_first,
    raise_everywhere,
)
from vmoe_prc.steps.state import TrainState
from vmoe_prc.train.cluster_upcycling import cluster_experts
from vmoe_prc.train.evaluators import ScheduledEvaluator, evaluate
from vmoe_prc.train.initialization import check_prefix, initialize
from vmoe_prc.train.non_finite import check_finite, check_params, check_progress
from vmoe_prc.train.profiling import profiler
from vmoe_prc.train.program import Program, build_program
from vmoe_prc.train.progress import StepTimer, progress
from vmoe_prc.train.recorder import Recorder
from vmoe_prc.workdir.atomic import atomic_write
from vmoe_prc.workdir.history import check_data
from vmoe_prc.workdir.layout import (
    CHECKPOINT_FOLDER,
    COMPILATION_CACHE_FOLDER,
    LOG_FILE,
    SUMMARY_FILE,
)
from vmoe_prc.workdir.lock import lock_workdir
from vmoe_prc.workdir.paths import user_path
from vmoe_prc.workdir.writers import WRITE_ERRORS


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> str:
    """Trains, evaluates and saves; resumes the run that the work directory holds, if any.

    With several processes all of them call it, with a directory that all of them see.

    Args:
      config: The configuration, see `vmoe_prc.config`.
      workdir: Directory for checkpoints, metrics and figures.

    Returns:
      The summary of the run, as text.

    Raises:
      ConfigError: If the configuration cannot be used, or another run is in the directory.
      CheckpointError: If the checkpoints there cannot be used.
      PreemptedError: If the program received SIGTERM, or Ctrl-C once it trains; a checkpoint
        has been saved.
      RunError: If the run cannot continue, such as when the disk is full, or when loss or
        gradients are not finite.
    """
    workdir = user_path(workdir)
    log = workdir / LOG_FILE.format(process=jax.process_index())
    with preemption_notice() as preempted:
        notice = _Notice(preempted)
        # All of the configuration is checked before anything is written.
        with raise_everywhere(), process_zero_first():
            program = build_program(config, between_batches=notice.end_evaluation)
            if not (workdir / CHECKPOINT_FOLDER).exists():
                check_prefix(program.config.initialization.to_dict())
        connect_devices(program.mesh)
        with (
            lock_workdir(workdir) as check_held,
            log_file(log),
            _write_errors(workdir),
            jax.set_mesh(program.mesh),
        ):
            logging.info("work directory: %s", workdir)
            if program.config.note:
                logging.info("%s", program.config.note)
            if jax.process_count() > 1:
                # Machines come and go, and GPUs must compile alike on all of them.
                use_compilation_cache(workdir / COMPILATION_CACHE_FOLDER)
            return _run(program, workdir, notice, check_held)


class _EvaluationEndedError(Exception):
    """Ends an evaluation when the run is to end."""


class _Notice:
    """Whether the run is to end. All processes ask equally often, and learn it together."""

    def __init__(self, preempted: Callable[[int], bool]):
        self._preempted, self._count = preempted, itertools.count(1)

    def received(self) -> bool:
        """Whether the run is to end now; asked after each step."""
        return self._preempted(next(self._count))

    def end_evaluation(self) -> None:
        """Raises `_EvaluationEndedError` if the run is to end; called before each batch."""
        if self.received():
            raise _EvaluationEndedError


def _run(
    program: Program, workdir: epath.Path, notice: _Notice, check_held: Callable[[], None]
) -> str:
    options = program.config.save_checkpoint
    with Checkpointer(
        workdir / CHECKPOINT_FOLDER,
        keep_last=options.keep_last,
        keep_steps_multiple_of=options.keep_steps_multiple_of,
        keep_best=options.keep_best,
        best_metric=options.best_metric,
    ) as checkpointer:
        state = _restore_or_create(program, workdir, checkpointer)
        with Recorder(program, workdir, int(state.step)) as recorder:
            state, results = _train(
                program, state, workdir, checkpointer, recorder, notice, check_held
            )
            checkpointer.wait()
            check_held()
        checkpoint = workdir / CHECKPOINT_FOLDER / str(checkpointer.latest_step())
        paths = {"checkpoint": checkpoint, **recorder.paths}
        summary = format_summary(results, paths, tuple(program.config.evaluators))
        if is_main_process():
            with atomic_write(workdir / SUMMARY_FILE) as path:
                path.write_text(summary + "\n")
        return summary


def _restore_or_create(
    program: Program, workdir: epath.Path, checkpointer: Checkpointer
) -> TrainState:
    if checkpointer.latest_step() is not None:
        with raise_everywhere():
            check_data(program.data, workdir)
        state = checkpointer.restore(program.abstract_state)
        logging.info("resuming after step %d of %d", int(state.step), program.total_steps)
        return state
    state = program.create_state()
    if program.config.initialization.prefix:
        state, table = initialize(
            state, program.config.initialization.to_dict(), program.patch_grid
        )
        logging.info("from %s:\n%s", program.config.initialization.prefix, table)
        if int(state.step) >= program.total_steps:
            expected = f"the run to continue has ended: needs more than {int(state.step)} steps"
            raise ConfigError("config.train_steps", program.total_steps, expected)
        if program.config.initialization.clusters:
            state, table = cluster_experts(program, state)
            logging.info("experts from clusters of tokens:\n%s", table)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    logging.info("new run: %s parameters, %s steps", f"{count:,}", f"{program.total_steps:,}")
    return state


def _train(
    program: Program,
    state: TrainState,
    workdir: epath.Path,
    checkpointer: Checkpointer,
    recorder: Recorder,
    notice: _Notice,
    check_held: Callable[[], None],
) -> tuple[TrainState, dict[str, float]]:
    """Takes the remaining steps; returns the last state and the metrics of its evaluation."""
    config, total_steps, start = program.config, program.total_steps, int(state.step)
    is_due = functools.partial(_is_due, total_steps)
    timer = _create_timer(program)
    results = {} if start == total_steps else _evaluate_start(program, state, recorder)
    with (
        interrupt_as_preemption(),
        end_in_time() as watched,
        contextlib.closing(program.train_batches(start)) as batches,
        progress(total_steps, start, visible=is_main_process()) as bar,
        profiler(config, workdir) as profile,
        watched,
    ):
        for step in range(start + 1, total_steps + 1):
            # One step. JAX runs ahead of us until we ask for a value.
            first = bar.doing("compiling") if step == start + 1 else contextlib.nullcontext()
            with first:
                if step == start + 1:
                    program.check_memory()
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = program.train_step(state, next(batches))
                timer.step(metrics)
            bar.step(step)
            profile(step)

            # Reports and evaluations that are due after this step; all are after the last one.
            report = is_due(step, config.report_progress.every_steps)
            evaluators = [e for e in program.evaluators if is_due(step, e.every_steps)]
            if report or evaluators:
                check_finite(program, state, workdir)

            if report:
                rates = timer.report(metrics)
                shown = {"loss": metrics["total_loss"], "accuracy": metrics["accuracy"]}
                bar.report(step, shown, rates)
                recorder.training(step, {**metrics, **program.summaries(state)}, rates)

            latest: dict[str, float] | None = {}
            if evaluators:
                with timer.paused(metrics), bar.doing("evaluating"):
                    latest = _evaluate(program, evaluators, state, recorder)
                results |= latest or {}

            # A notice ends an evaluation, whose results the resumed run has then to make.
            interrupted = latest is None
            stop = interrupted or notice.received()
            if stop or is_due(step, config.save_checkpoint.every_steps):
                check_finite(program, state, workdir)
                check_params(program, state)
                with timer.paused(metrics):
                    check_held()
                    # Metrics on disk are never behind the checkpoint.
                    recorder.flush()
                    checkpointer.save(step, state, latest or None)

            if stop and (interrupted or step < total_steps):
                checkpointer.wait()
                raise PreemptedError(step)

    check_progress(state)
    if not results:
        # A run that had ended is only evaluated again.
        results = _evaluate_saved(program, program.evaluators, state, recorder)
    return state, results


def _evaluate(
    program: Program,
    evaluators: Sequence[ScheduledEvaluator],
    state: TrainState,
    recorder: Recorder,
) -> dict[str, float] | None:
    """Evaluates a state and records the results; None if a notice has ended the evaluation."""
    check_params(program, state)
    try:
        results = evaluate(evaluators, state.eval_params)
    except _EvaluationEndedError:
        return None
    return recorder.evaluation(int(state.step), results)


def _evaluate_start(program: Program, state: TrainState, recorder: Recorder) -> dict[str, float]:
    """Makes the evaluation after the step of the checkpoint if a notice has ended it."""
    start = int(state.step)
    due = [e for e in program.evaluators if start % e.every_steps == 0]
    if start == 0 or not due or recorder.start_is_evaluated:
        return {}
    return _evaluate_saved(program, due, state, recorder)


def _evaluate_saved(
    program: Program,
    evaluators: Sequence[ScheduledEvaluator],
    state: TrainState,
    recorder: Recorder,
) -> dict[str, float]:
    """Evaluates a state that is in a checkpoint already."""
    results = _evaluate(program, evaluators, state, recorder)
    if results is None:
        raise PreemptedError(int(state.step))
    return results


def _is_due(total_steps: int, step: int, every_steps: int) -> bool:
    return step % every_steps == 0 or step == total_steps


def _create_timer(program: Program) -> StepTimer:
    return StepTimer(
        program.views_per_step,
        flops_per_step=program.flops_per_step,
        peak_flops=program.peak_flops,
    )


@contextlib.contextmanager
def _write_errors(workdir: epath.Path) -> Iterator[None]:
    """Turns errors of writing into a `RunError` that names the directory."""
    try:
        yield
    except WRITE_ERRORS as error:
        # Errors of TensorFlow name its function in braces.
        text = re.sub(r"\{\{.*?\}\}", "", str(error.__cause__ or error))
        raise RunError(f"{workdir}: {' '.join(text.split())}") from error
