"""Builds the mesh, the model, the jitted steps and the evaluators of a configuration."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from vmoe_prc.config import ConfigError, check_batch, complete, evaluation_model
from vmoe_prc.data import feed, pipeline
from vmoe_prc.data.split import Split, open_split, open_splits
from vmoe_prc.evaluation.evaluator import EvaluationContext
from vmoe_prc.models import create_model
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.runtime.memory import check_program_fits
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.runtime.peaks import peak_flops
from vmoe_prc.runtime.trees import named_leaves
from vmoe_prc.steps.state import TrainState
from vmoe_prc.steps.summaries import summarize
from vmoe_prc.steps.train import Gradients, TrainStep
from vmoe_prc.steps.views import Batch
from vmoe_prc.train.evaluators import ScheduledEvaluator, create_evaluators
from vmoe_prc.train.fit_to_devices import fit_to_devices
from vmoe_prc.train.memory import check_batches_fit, check_state_fits, check_step_fits
from vmoe_prc.train.step import abstract_batch, build_step, views_per_step
from vmoe_prc.workdir.paths import absolute_path

# Models deeper than any published ViT compile so slowly that a warning is logged.
MANY_BLOCKS = 64


@dataclasses.dataclass(frozen=True)
class Program:
    """A configuration built for a mesh; it does not change during the run.

    Attributes:
      config: The completed configuration.
      mesh: The device mesh.
      splits: The splits of `config.dataset`, by name.
      total_steps: Steps of the whole training.
      views_per_step: Views that the model sees in a step.
      schedule: Learning rate by step.
      abstract_state: Shapes and shardings of the training state.
      create_state: Creates the initial state.
      gradients: Function of the gradients of a step; the caller jits it.
      train_step: The jitted update; its first argument is donated.
      evaluators: The evaluators of the run.
      summaries: Function of the numbers of single arrays, see `steps.summaries`.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    splits: Mapping[str, Split]
    total_steps: int
    views_per_step: int
    schedule: optax.Schedule
    abstract_state: TrainState
    create_state: Callable[[], TrainState]
    gradients: Gradients
    train_step: TrainStep
    evaluators: Sequence[ScheduledEvaluator]
    summaries: Callable[[TrainState], Mapping[str, jax.Array]]

    @property
    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the global batches of training."""
        return self.splits["train"].batch_spec(train=True)

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """Description of each split by its name, see `Split.description`."""
        return {name: split.description() for name, split in self.splits.items()}

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of an image in training."""
        height, width, _ = self.batch_spec["image"].shape[-3:]
        patch_height, patch_width = self.config.model.patch_size
        return height // patch_height, width // patch_width

    @property
    def flops_per_step(self) -> float:
        """FLOPs that the model asks for in a step of training, over all devices."""
        height, width, _ = self.batch_spec["image"].shape[-3:]
        forward = forward_flops_per_image(self.config.model.to_dict(), (height, width))
        return 3.0 * forward * self.views_per_step

    @property
    def peak_flops(self) -> float | None:
        """Peak FLOP/s of all devices together, None if it is not known."""
        device = self.mesh.devices.flat[0]
        dtype = self.config.model.encoder.dtype or self.config.model.dtype
        peak = peak_flops(device.device_kind, dtype)
        return peak and peak * self.mesh.size

    def check_memory(self) -> None:
        """Compiles the step, and raises RunError if the memory of this host cannot hold it."""
        arguments = (self.abstract_state, abstract_batch(self.batch_spec, self.mesh))
        # Orbax copies each array once, however many devices have it, and writes it during the
        # next steps.
        leaves = jax.tree.leaves(self.abstract_state)
        copied = sum(x.size * x.dtype.itemsize for x in leaves) // self.mesh.size
        check_program_fits(self.train_step, arguments, self.mesh.local_devices, copied)

    def train_batches(self, start_step: int) -> Generator[Batch, None, None]:
        """Makes the global batches of training after a step, on the devices."""
        return feed.on_devices(self.splits["train"], self.train_rows(start_step), self.mesh)

    def train_rows(self, start_step: int) -> Generator[dict[str, np.ndarray], None, None]:
        """Makes this process's rows of the batches of training after a step, on the host."""
        return pipeline.train_batches(
            self.splits["train"],
            seed=self.config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def build_program(
    config: ml_collections.ConfigDict, between_batches: Callable[[], None] = lambda: None
) -> Program:
    """Turns a configuration into jitted steps, having checked all of it.

    Args:
      config: The configuration.
      between_batches: Called before each batch that an evaluator reads. It ends the evaluation
        by an exception.

    Raises:
      ConfigError: If the configuration cannot be used.
    """
    config = _with_absolute_paths(complete(config))
    splits = open_splits(dict(config.dataset.items()))
    images = {
        name: split.batch_spec(train=name == "train")["image"] for name, split in splits.items()
    }
    check_batches_fit(images, jax.process_count())
    shapes = {name: x.shape for name, x in images.items()}
    config = fit_to_devices(config, shapes, jax.devices())
    mesh = create_mesh(config.num_expert_partitions)
    batch_spec = splits["train"].batch_spec(train=True)
    total_steps = config.train_steps or math.ceil(
        config.train_epochs * splits["train"].num_examples / views_per_step(batch_spec)
    )
    if (blocks := config.model.encoder.num_layers) > MANY_BLOCKS:
        logging.warning(
            "config.model.encoder.num_layers = %d: blocks are compiled one by one; before the "
            "first step this may take many minutes",
            blocks,
        )
    step = build_step(config, mesh, batch_spec, total_steps)
    check_state_fits(step.abstract_state, mesh.local_devices)
    check_step_fits(step.train_step, step.abstract_state, abstract_batch(batch_spec, mesh), mesh)
    context = _evaluation_context(config, mesh, splits, between_batches)
    _check_evaluated_params(context, step.abstract_state.params)
    return Program(
        config=config,
        mesh=mesh,
        splits=splits,
        total_steps=total_steps,
        views_per_step=step.views_per_step,
        schedule=step.schedule,
        abstract_state=step.abstract_state,
        create_state=step.create_state,
        gradients=step.gradients,
        train_step=step.train_step,
        evaluators=create_evaluators(context),
        summaries=_summaries(config, step.abstract_state),
    )


def _summaries(
    config: ml_collections.ConfigDict, state: TrainState
) -> Callable[[TrainState], Mapping[str, jax.Array]]:
    """Returns the function of the state that `config.summarize_arrays` asks for.

    Raises:
      ConfigError: If a rule cannot be used.
    """
    if config.summarize_arrays is None:
        return lambda state: {}
    options = config.summarize_arrays.to_dict()
    run = jax.jit(
        lambda state: summarize({"params": state.params, "opt_state": state.opt_state}, **options)
    )
    try:
        jax.eval_shape(run, state)
    except (ValueError, re.error) as error:
        raise ConfigError("config.summarize_arrays.rules", options["rules"], str(error)) from None
    return run


def _with_absolute_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Makes paths absolute: a run is resumed and analysed from other directories, too."""
    sections = [(section, ("data_dir", "manual_dir")) for section in config.dataset.values()]
    sections += [(config.initialization, ("prefix",))]
    sections += [(config.fewshot, ("data_dir",))] if config.fewshot else []
    for section, fields in sections:
        for field in fields:
            if section[field]:
                section[field] = absolute_path(section[field])
    return config


class _EvaluationSplit:
    """A split that is evaluated; see `evaluation.evaluator.EvaluationSplit`."""

    def __init__(self, split: Split, mesh: Mesh, between_batches: Callable[[], None]):
        self.spec: Mapping[str, jax.ShapeDtypeStruct] = split.batch_spec(train=False)
        self.value_range = split.value_range or (-1.0, 1.0)
        self.class_names: Sequence[str] | None = split.class_names
        self._split, self._mesh, self._between_batches = split, mesh, between_batches

    def batches(self) -> Iterator[Batch]:
        with contextlib.closing(feed.eval_batches(self._split, self._mesh)) as batches:
            for batch in batches:
                self._between_batches()
                yield batch


def _evaluation_context(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    splits: Mapping[str, Split],
    between_batches: Callable[[], None],
) -> EvaluationContext:
    def checked(split: Split, num_classes: int | None) -> _EvaluationSplit:
        result = _EvaluationSplit(split, mesh, between_batches)
        field, shape = split.field.removeprefix("config."), result.spec["image"].shape
        check_batch(config, field, shape, mesh.size, num_classes)
        return result

    def opened(section: ml_collections.ConfigDict, field: str, labels: str) -> _EvaluationSplit:
        split = open_split(section, field, labels)
        return checked(split, split.num_classes if labels == "labels" else None)

    model = create_model(
        evaluation_model(config), deterministic=True, shard_kernels=config.shard_dense_params
    )
    evaluated = {
        name: checked(split, split.num_classes) for name, split in splits.items() if name != "train"
    }
    return EvaluationContext(config, model, mesh, evaluated, opened)


def _check_evaluated_params(context: EvaluationContext, params: Any) -> None:
    """Checks that the model has the same parameters in evaluation as in training."""
    overrides = context.config.evaluate.model_overrides
    if not overrides or not context.splits:
        return
    *views, height, width, channels = next(iter(context.splits.values())).spec["image"].shape
    images = jax.ShapeDtypeStruct((math.prod(views), height, width, channels), jnp.float32)
    evaluated = jax.eval_shape(lambda x: context.model.init(jax.random.key(0), x), images)["params"]
    found, trained = (
        {name: x.shape for name, x in named_leaves(p).items()} for p in (evaluated, params)
    )
    for name in sorted(found.keys() | trained.keys()):
        if found.get(name) != trained.get(name):
            raise ConfigError(
                "config.evaluate.model_overrides",
                overrides.to_dict(),
                f"must not change parameters: {name} is {found.get(name, 'missing')} in "
                f"evaluation and {trained.get(name, 'missing')} in training",
            )
