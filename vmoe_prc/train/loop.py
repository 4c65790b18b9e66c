"""A whole run: from a configuration to a work directory with everything in it."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_collections
from absl import logging
from clu import metric_writers
from etils import epath

from vmoe_prc.checkpoints.manager import Checkpointer
from vmoe_prc.data import pipeline
from vmoe_prc.data.feed import device_batches, eval_batches
from vmoe_prc.errors import PreemptedError, RunError
from vmoe_prc.evaluation.summary import format_summary
from vmoe_prc.figures.panels import figure_pixels, save_figure
from vmoe_prc.figures.training import TrainingPicture, make_training_picture
from vmoe_prc.runtime.logs import setup_logging
from vmoe_prc.runtime.mesh import batch_sharding
from vmoe_prc.runtime.preemption import preemption_notice
from vmoe_prc.runtime.processes import is_main_process, process_zero_first, raise_everywhere
from vmoe_prc.steps.state import TrainState
from vmoe_prc.train.evaluators import evaluate_fewshot, evaluate_splits
from vmoe_prc.train.initialization import initialize
from vmoe_prc.train.non_finite import check_finite
from vmoe_prc.train.profiling import profiler
from vmoe_prc.train.program import Program, build_program
from vmoe_prc.train.progress import StepTimer, progress
from vmoe_prc.workdir.atomic import atomic_write
from vmoe_prc.workdir.layout import (
    CHECKPOINT_FOLDER,
    PICTURE_FILE,
    SUMMARY_FILE,
    TENSORBOARD_FOLDER,
    save_config,
)
from vmoe_prc.workdir.lock import lock_workdir
from vmoe_prc.workdir.metrics import METRICS_FILE, truncate_metrics
from vmoe_prc.workdir.writers import WRITE_ERRORS, create_writer


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the loop writes to and listens to."""

    program: Program
    workdir: epath.Path
    checkpointer: Checkpointer
    writer: metric_writers.MetricWriter
    picture: TrainingPicture
    preempted: Callable[[int], bool]


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> str:
    """Trains, evaluates and saves; resumes if the work directory holds a run already.

    With several processes all of them call it, with a directory that all of them see.

    Args:
      config: The configuration, see `vmoe_prc.config`.
      workdir: Directory for checkpoints, metrics and the final picture.

    Returns:
      The summary of the run, as text.

    Raises:
      ConfigError: If the configuration cannot be used, or another run is in the directory.
      CheckpointError: If the checkpoints there cannot be used.
      PreemptedError: If the program received SIGTERM; a checkpoint has been written.
      RunError: If the run cannot go on: for a full disk, or because loss or gradients are
        not finite.
    """
    setup_logging(quiet=not is_main_process())
    with preemption_notice() as preempted:
        with raise_everywhere(), process_zero_first():
            program = build_program(config)
        workdir = epath.Path(workdir)
        with lock_workdir(workdir), _errors_in_one_line(workdir), jax.set_mesh(program.mesh):
            return _run(program, workdir, preempted)


def _run(program: Program, workdir: epath.Path, preempted: Callable[[int], bool]) -> str:
    checkpoint = program.config.save_checkpoint
    with Checkpointer(
        workdir / CHECKPOINT_FOLDER,
        keep_last=checkpoint.keep_last,
        keep_best=checkpoint.keep_best,
        best_metric=checkpoint.best_metric,
    ) as checkpointer:
        state = _restore_or_create(program, checkpointer)
        if is_main_process():
            save_config(program.config, workdir)
            truncate_metrics(workdir / METRICS_FILE, int(state.step))
            (workdir / SUMMARY_FILE).unlink(missing_ok=True)
        writer = create_writer(workdir, process_index=jax.process_index())
        try:
            picture = make_training_picture(program.eval_model)
            run = _Run(program, workdir, checkpointer, writer, picture, preempted)
            state, results = _train(run, state)
            checkpointer.wait()
        finally:
            writer.close()
        paths = {
            "checkpoint": workdir / CHECKPOINT_FOLDER / str(checkpointer.latest_step()),
            "TensorBoard": workdir / TENSORBOARD_FOLDER,
            "metrics": workdir / METRICS_FILE,
        }
        if (workdir / PICTURE_FILE).exists():
            paths["picture"] = workdir / PICTURE_FILE
        summary = format_summary(results, paths)
        if is_main_process():
            with atomic_write(workdir / SUMMARY_FILE) as path:
                path.write_text(summary + "\n")
        return summary


@contextlib.contextmanager
def _errors_in_one_line(workdir: epath.Path) -> Iterator[None]:
    try:
        yield
    except WRITE_ERRORS as error:
        raise RunError(f"{workdir}: {error.__cause__ or error}") from error


def _train(run: _Run, state: TrainState) -> tuple[TrainState, dict[str, float]]:
    """Runs the remaining steps; returns the last state and its evaluation."""
    program, config, total_steps = run.program, run.program.config, run.program.total_steps
    start = int(state.step)
    batches = device_batches(
        pipeline.train_batches(**program.train_data(start)),
        batch_sharding(program.mesh),
        config.dataset.train.prefetch_device,
    )
    timer = StepTimer(
        program.images_per_step,
        flops_per_step=program.flops_per_step,
        peak_flops=program.peak_flops,
    )
    results: dict[str, float] = {}
    metrics: dict[str, jax.Array] = {}
    with (
        progress(total_steps, start, visible=is_main_process()) as bar,
        profiler(config, run.workdir) as profile,
    ):
        for step in range(start + 1, total_steps + 1):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = program.train_step(state, next(batches))
            timer.step(metrics)
            bar.step(step)
            profile(step)
            preempted = run.preempted(step)
            report = _due(step, config.report_progress.every_steps, total_steps)
            evaluated = _due(step, config.evaluate.every_steps, total_steps)
            fewshot = config.fewshot and _due(step, config.fewshot.every_steps, total_steps)
            save = preempted or _due(step, config.save_checkpoint.every_steps, total_steps)
            if report or evaluated or fewshot or save:
                check_finite(program, state, run.workdir)
            if report:
                rates = timer.report(metrics)
                shown = {"loss": metrics["total_loss"], "accuracy": metrics["accuracy"]}
                bar.report(step, shown, rates)
                _write_train_metrics(run.writer, step, program, metrics, rates)
            if evaluated or fewshot:
                with timer.paused(metrics):
                    latest = evaluate_splits(program, state) if evaluated else {}
                    latest |= evaluate_fewshot(program, state) if fewshot else {}
                    run.writer.write_scalars(step, latest)
                    if evaluated:
                        _draw(run, state, step)
                _log_results(step, latest)
                results |= latest
            if save:
                with timer.paused(metrics):
                    # Metrics on disk are never behind the checkpoint.
                    run.writer.flush()
                    run.checkpointer.save(step, state, results if evaluated else None)
            if preempted and step < total_steps:
                run.checkpointer.wait()
                raise PreemptedError(step)
    batches.close()
    if not results:
        results = evaluate_splits(program, state) | evaluate_fewshot(program, state)
        _draw(run, state, total_steps)
    return state, results


def _restore_or_create(program: Program, checkpointer: Checkpointer) -> TrainState:
    if checkpointer.latest_step() is None:
        state = program.create_state()
        if program.config.initialization.prefix:
            state, table = initialize(state, program.config.initialization.to_dict())
            logging.info("from %s:\n%s", program.config.initialization.prefix, table)
        count = sum(x.size for x in jax.tree.leaves(state.params))
        logging.info("new run: %s parameters, %s steps", f"{count:,}", f"{program.total_steps:,}")
        return state
    state = checkpointer.restore(program.abstract_state)
    logging.info("resuming after step %d of %d", int(state.step), program.total_steps)
    return state


def _write_train_metrics(writer, step, program, metrics, rates):
    scalars = {f"train/{name}": value for name, value in metrics.items()}
    # That of the last update: the first one used the rate of count 0.
    updates = step - int(metrics["skipped_steps"])
    scalars["train/learning_rate"] = float(program.schedule(max(updates - 1, 0)))
    writer.write_scalars(step, scalars | {f"speed/{name}": v for name, v in rates.items()})


def _log_results(step: int, results: Mapping[str, float]):
    shown = [
        f"{name} {value:.4f}"
        for name, value in results.items()
        if (name.endswith(("/accuracy", "/top1")) and name.count("/") == 1) or name.endswith("shot")
    ]
    logging.info("evaluation at step %d: %s", step, ", ".join(shown))


def _draw(run: _Run, state: TrainState, step: int) -> None:
    """Shows the routing of a split of two views, or else of one, in TensorBoard and a file."""
    program = run.program
    splits = sorted(program.eval_splits, key=lambda s: program.specs[s]["image"].ndim != 5)
    if not splits:
        return
    batch = next(eval_batches(program.config.dataset[splits[0]], program.mesh))
    draw = run.picture(state.eval_params, batch)
    if draw and is_main_process():
        figure = draw()
        save_figure(figure, run.workdir / PICTURE_FILE)
        run.writer.write_images(step, {f"routing/{splits[0]}": figure_pixels(figure)[None]})


def _due(step: int, every_steps: int, total_steps: int) -> bool:
    return step % every_steps == 0 or step == total_steps
