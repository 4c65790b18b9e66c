"""A whole run: from a configuration to a work directory with everything in it."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import optax
from absl import logging
from etils import epath
from jax.sharding import Mesh

from vmoe_prc import data
from vmoe_prc.analysis.final_picture import save_final_picture
from vmoe_prc.checkpoints.orbax import Checkpointer
from vmoe_prc.config import (
    ConfigError,
    check_batch,
    complete,
    evaluation_model,
    fewshot_sections,
    flatten,
)
from vmoe_prc.data.feed import device_batches
from vmoe_prc.device_peak import peak_flops
from vmoe_prc.evaluate import evaluate
from vmoe_prc.fewshot import (
    RepresentationStep,
    fewshot_accuracies,
    make_representation_step,
    represent,
)
from vmoe_prc.initialization import initialize
from vmoe_prc.mesh import batch_sharding, create_mesh, replicated
from vmoe_prc.metrics import METRICS_FILE, truncate_metrics
from vmoe_prc.models import create_model
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.progress import StepTimer, progress, show_logs
from vmoe_prc.schedule import create_learning_rate_schedule
from vmoe_prc.summary import format_summary
from vmoe_prc.train_state import TrainState, abstract_train_state, create_train_state
from vmoe_prc.train_step import EvalStep, TrainStep, make_eval_step, make_train_step
from vmoe_prc.workdir import CHECKPOINT_FOLDER, CONFIG_FILE, PICTURE_FILE, SUMMARY_FILE
from vmoe_prc.writers import TENSORBOARD_FOLDER, create_writer


@dataclasses.dataclass(frozen=True)
class Program:
    """What a configuration becomes on a mesh; nothing of it changes during the run.

    Attributes:
      config: The completed configuration.
      mesh: The device mesh.
      specs: Shapes and dtypes of the global batches of each split.
      total_steps: Steps of the whole training.
      images_per_step: Views that the model sees in a step.
      schedule: Learning rate by step.
      eval_model: The model as it is evaluated.
      abstract_state: Shapes and shardings of the training state.
      create_state: Makes the initial state.
      train_step: The jitted update; its first argument is donated.
      eval_step: The jitted evaluation step.
      representation_step: The jitted function of few-shot evaluation.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    specs: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
    total_steps: int
    images_per_step: int
    schedule: optax.Schedule
    eval_model: Any
    abstract_state: TrainState
    create_state: Any
    train_step: TrainStep
    eval_step: EvalStep
    representation_step: RepresentationStep

    @property
    def eval_splits(self) -> list[str]:
        """Names of the splits that are evaluated."""
        return [split for split in self.config.dataset if split != "train"]


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> str:
    """Trains, evaluates and saves; resumes if the work directory holds a run already.

    Args:
      config: The configuration, see `vmoe_prc.config`.
      workdir: Directory for checkpoints, metrics and the final picture.

    Returns:
      The summary of the run, as text.

    Raises:
      ConfigError: If the configuration cannot be used.
    """
    show_logs()
    program = build_program(config)
    workdir = epath.Path(workdir)
    checkpoint = program.config.save_checkpoint
    with (
        jax.set_mesh(program.mesh),
        Checkpointer(
            workdir / CHECKPOINT_FOLDER,
            keep_last=checkpoint.keep_last,
            keep_best=checkpoint.keep_best,
            best_metric=checkpoint.best_metric,
        ) as checkpointer,
    ):
        state = _restore_or_create(program, checkpointer)
        _save_config(program.config, workdir)
        if jax.process_index() == 0:
            truncate_metrics(workdir / METRICS_FILE, int(state.step))
            (workdir / SUMMARY_FILE).unlink(missing_ok=True)
        writer = create_writer(workdir, process_index=jax.process_index())
        try:
            state, results = _train(program, state, checkpointer, writer, workdir)
            checkpointer.wait()
            picture = _save_picture(program, state, workdir)
        finally:
            writer.close()
        paths = {
            "checkpoint": workdir / CHECKPOINT_FOLDER / str(checkpointer.latest_step()),
            "TensorBoard": workdir / TENSORBOARD_FOLDER,
            "metrics": workdir / METRICS_FILE,
            "picture": picture,
        }
        summary = format_summary(results, {name: p for name, p in paths.items() if p})
        if jax.process_index() == 0:
            (workdir / SUMMARY_FILE).write_text(summary + "\n")
        return summary


def build_program(config: ml_collections.ConfigDict) -> Program:
    """Turns a configuration into jitted steps, having checked all of it.

    Raises:
      ConfigError: If the configuration cannot be used.
    """
    config = complete(config)
    mesh = create_mesh(config.num_expert_partitions)
    for split, dataset in config.dataset.items():
        data.validate(dataset, f"config.dataset.{split}")
    specs = {
        split: data.batch_spec(dataset, train=split == "train")
        for split, dataset in config.dataset.items()
    }
    for split, spec in specs.items():
        check_batch(config, f"dataset.{split}", spec["image"].shape, mesh.size)
    _check_fewshot(config, mesh)
    image_shape = specs["train"]["image"].shape
    images_per_step = math.prod(image_shape[:-3])
    total_steps = config.train_steps or math.ceil(
        config.train_epochs * data.num_examples(config.dataset.train) / images_per_step
    )
    plain = config.to_dict()
    model = create_model(plain["model"], deterministic=False)
    eval_model = create_model(evaluation_model(config), deterministic=True)
    try:
        optimizer = create_optimizer(total_steps=total_steps, **plain["optimizer"])
        schedule = create_learning_rate_schedule(
            total_steps=total_steps, **plain["optimizer"]["learning_rate"]
        )
    except ValueError as error:
        raise ConfigError("config.optimizer", config.optimizer.name, str(error)) from None
    step_shape = (images_per_step, *image_shape[-3:])
    abstract_state = abstract_train_state(
        model,
        optimizer,
        step_shape,
        mesh,
        config.params_axis_resources if config.model.encoder.moe.layers else (),
        use_ema=config.ema_decay is not None,
    )
    mixup = plain["mixup"] and {**plain["mixup"], "num_devices": mesh.size}
    train_step = make_train_step(
        model,
        optimizer,
        loss=plain["loss"],
        auxiliary_loss_weights=plain["auxiliary_loss"],
        consistency=plain["consistency"],
        mixup_options=mixup,
        microsteps=config.microsteps,
        ema_decay=config.ema_decay,
        seed=config.seed,
    )
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return Program(
        config=config,
        mesh=mesh,
        specs=specs,
        total_steps=total_steps,
        images_per_step=images_per_step,
        schedule=schedule,
        eval_model=eval_model,
        abstract_state=abstract_state,
        create_state=lambda: create_train_state(
            model, optimizer, step_shape, config.seed, abstract_state
        ),
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
        eval_step=jax.jit(
            make_eval_step(eval_model, plain["loss"]), out_shardings=replicated(mesh)
        ),
        # Every process fits the regressions on all of the representations.
        representation_step=jax.jit(
            make_representation_step(eval_model), out_shardings=replicated(mesh)
        ),
    )


def _check_fewshot(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    for name, sections in fewshot_sections(config.fewshot).items() if config.fewshot else ():
        for section in sections.values():
            data.validate(section, f"config.fewshot.datasets.{name}", labels="label")
        # Its splits differ in nothing that shapes a batch.
        image_shape = data.batch_spec(sections["test"], train=False)["image"].shape
        check_batch(config, "fewshot", image_shape, mesh.size)


def _train(program, state, checkpointer, writer, workdir) -> tuple[TrainState, dict[str, float]]:
    """Runs the remaining steps; returns the last state and its evaluation."""
    config, total_steps = program.config, program.total_steps
    start = int(state.step)
    batches = device_batches(
        data.train_batches(
            config.dataset.train,
            seed=config.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        batch_sharding(program.mesh),
        config.dataset.train.prefetch_device,
    )
    timer = StepTimer(
        program.images_per_step,
        flops_per_step=_step_flops(program),
        peak_flops=_peak_flops(program),
    )
    results: dict[str, float] = {}
    metrics: dict[str, jax.Array] = {}
    with (
        progress(total_steps, start, visible=jax.process_index() == 0) as bar,
        _profiler(config, workdir) as profile,
    ):
        for step in range(start + 1, total_steps + 1):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = program.train_step(state, next(batches))
            timer.step(metrics)
            bar.step(step)
            profile(step)
            if _due(step, config.report_progress.every_steps, total_steps):
                rates = timer.report(metrics)
                shown = {"loss": metrics["total_loss"], "accuracy": metrics["accuracy"]}
                bar.report(step, shown, rates)
                _write_train_metrics(writer, step, program, metrics, rates)
            evaluated = _due(step, config.evaluate.every_steps, total_steps)
            fewshot = config.fewshot and _due(step, config.fewshot.every_steps, total_steps)
            if evaluated or fewshot:
                with timer.paused(metrics):
                    latest = _evaluate_splits(program, state) if evaluated else {}
                    latest |= _evaluate_fewshot(program, state) if fewshot else {}
                    writer.write_scalars(step, latest)
                _log_results(step, latest)
                results |= latest
            if _due(step, config.save_checkpoint.every_steps, total_steps):
                with timer.paused(metrics):
                    # Metrics on disk are never behind the checkpoint.
                    writer.flush()
                    checkpointer.save(step, state, results if evaluated else None)
    batches.close()
    if not results:
        results = _evaluate_splits(program, state) | _evaluate_fewshot(program, state)
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


def _evaluate_splits(program: Program, state: TrainState) -> dict[str, float]:
    """Evaluates every split but `train`; metrics are named `{split}/{metric}`."""
    results = {}
    for split in program.eval_splits:
        batches = _eval_batches(program, program.config.dataset[split])
        metrics = evaluate(program.eval_step, state.eval_params, batches)
        results |= {f"{split}/{name}": value for name, value in metrics.items()}
    return results


def _evaluate_fewshot(program: Program, state: TrainState) -> dict[str, float]:
    """Few-shot accuracies of every data set listed, named `fewshot/{name}/{shots}shot`."""
    options = program.config.fewshot
    results = {}
    for name, sections in fewshot_sections(options).items() if options else ():
        examples = {
            split: represent(
                program.representation_step, state.eval_params, _eval_batches(program, section)
            )
            for split, section in sections.items()
        }
        accuracies = fewshot_accuracies(examples, options.shots, options.l2_regs)
        results |= {f"fewshot/{name}/{key}": value for key, value in accuracies.items()}
    return results


def _eval_batches(program: Program, dataset: ml_collections.ConfigDict) -> Iterator[Any]:
    return device_batches(
        data.eval_batches(
            dataset,
            seed=program.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        batch_sharding(program.mesh),
        dataset.prefetch_device,
    )


def _write_train_metrics(writer, step, program, metrics, rates):
    # The step that made these metrics used the rate of the step before.
    scalars = {f"train/{name}": value for name, value in metrics.items()}
    scalars["train/learning_rate"] = float(program.schedule(step - 1))
    writer.write_scalars(step, scalars | {f"speed/{name}": v for name, v in rates.items()})


def _log_results(step: int, results: Mapping[str, float]):
    shown = [
        f"{name} {value:.4f}"
        for name, value in results.items()
        if (name.endswith(("/accuracy", "/top1")) and name.count("/") == 1) or name.endswith("shot")
    ]
    logging.info("evaluation at step %d: %s", step, ", ".join(shown))


def _save_picture(program: Program, state: TrainState, workdir: epath.Path):
    """Saves the picture of a two-view split, if there is one; returns its path."""
    pairs = [s for s in program.eval_splits if program.specs[s]["image"].ndim == 5]
    if not pairs or jax.process_count() > 1:
        return None
    dataset = program.config.dataset[pairs[0]]
    batch = next(iter(data.eval_batches(dataset, seed=program.config.seed)))
    path = workdir / PICTURE_FILE
    save_final_picture(program.eval_model, state.eval_params, batch, path)
    return path


def _due(step: int, every_steps: int, total_steps: int) -> bool:
    return step % every_steps == 0 or step == total_steps


@contextlib.contextmanager
def _profiler(
    config: ml_collections.ConfigDict, workdir: epath.Path
) -> Iterator[Callable[[int], None]]:
    """Gives a function to call after each step, which traces those that the config names."""
    if config.profile is None or jax.process_index() != 0:
        yield lambda step: None
        return
    first = config.profile.first_profile
    last = first + config.profile.num_profile_steps - 1
    running = False

    def after(step: int) -> None:
        nonlocal running
        if step == first - 1:
            jax.profiler.start_trace(str(workdir / TENSORBOARD_FOLDER))
            running = True
        elif step == last and running:
            jax.profiler.stop_trace()
            running = False

    try:
        yield after
    finally:
        if running:
            jax.profiler.stop_trace()


def _step_flops(program: Program) -> float:
    height, width, _ = program.specs["train"]["image"].shape[-3:]
    forward = forward_flops_per_image(program.config.model.to_dict(), (height, width))
    return 3.0 * forward * program.images_per_step


def _peak_flops(program: Program) -> float | None:
    device = program.mesh.devices.flat[0]
    peak = peak_flops(device.device_kind, program.config.model.dtype)
    return peak and peak * program.mesh.size


def _save_config(config: ml_collections.ConfigDict, workdir: epath.Path):
    """Keeps the configuration beside the run, and tells how it differs from an earlier one."""
    path = workdir / CONFIG_FILE
    text = json.dumps(config.to_dict(), indent=2, default=list)
    if path.exists():
        earlier = flatten(json.loads(path.read_text()))
        now = flatten(json.loads(text))
        for field in sorted(earlier.keys() | now.keys()):
            if earlier.get(field) != now.get(field):
                logging.warning(
                    "config.%s was %r when this run began, and is now %r",
                    field,
                    earlier.get(field),
                    now.get(field),
                )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
