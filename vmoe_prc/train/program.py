"""Builds the mesh, the model, the jitted steps and the evaluators of a configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax
from jax.sharding import Mesh

from vmoe_prc.config import check_batch, check_schedule, complete, evaluation_model
from vmoe_prc.data import pipeline, source
from vmoe_prc.data.feed import eval_batches
from vmoe_prc.evaluation.evaluator import EvaluationContext
from vmoe_prc.models import create_model
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.runtime.peaks import peak_flops
from vmoe_prc.schedule import create_learning_rate_schedule
from vmoe_prc.steps.state import TrainState, abstract_train_state, create_train_state
from vmoe_prc.steps.train import Gradients, TrainStep, make_gradients, make_train_step
from vmoe_prc.steps.views import Batch
from vmoe_prc.train.evaluators import ScheduledEvaluator, create_evaluators
from vmoe_prc.train.memory import check_state_fits


@dataclasses.dataclass(frozen=True)
class Program:
    """A configuration built for a mesh; it does not change during the run.

    Attributes:
      config: The completed configuration.
      mesh: The device mesh.
      batch_spec: Shapes and dtypes of the global batches of training.
      total_steps: Steps of the whole training.
      images_per_step: Views that the model sees in a step.
      schedule: Learning rate by step.
      abstract_state: Shapes and shardings of the training state.
      create_state: Creates the initial state.
      gradients: Function of the gradients of a step; the caller jits it.
      train_step: The jitted update; its first argument is donated.
      evaluators: The evaluators of the run.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    batch_spec: Mapping[str, jax.ShapeDtypeStruct]
    total_steps: int
    images_per_step: int
    schedule: optax.Schedule
    abstract_state: TrainState
    create_state: Callable[[], TrainState]
    gradients: Gradients
    train_step: TrainStep
    evaluators: Sequence[ScheduledEvaluator]

    @property
    def flops_per_step(self) -> float:
        """FLOPs that the model asks for in a step of training, over all devices."""
        height, width, _ = self.batch_spec["image"].shape[-3:]
        forward = forward_flops_per_image(self.config.model.to_dict(), (height, width))
        return 3.0 * forward * self.images_per_step

    @property
    def peak_flops(self) -> float | None:
        """Peak FLOP/s of all devices together, None if it is not known."""
        device = self.mesh.devices.flat[0]
        peak = peak_flops(device.device_kind, self.config.model.dtype)
        return peak and peak * self.mesh.size

    def train_data(self, start_step: int) -> dict[str, Any]:
        """Arguments of `pipeline.train_batches` for this process, from the step after."""
        return {
            "config": self.config.dataset.train,
            "seed": self.config.seed,
            "start_step": start_step,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


def build_program(config: ml_collections.ConfigDict) -> Program:
    """Turns a configuration into jitted steps, having checked all of it.

    Raises:
      ConfigError: If the configuration cannot be used.
    """
    config = complete(config)
    mesh = create_mesh(config.num_expert_partitions)
    pipeline.validate(config.dataset.train, "config.dataset.train")
    batch_spec = pipeline.batch_spec(config.dataset.train, train=True)
    image_shape = batch_spec["image"].shape
    check_batch(
        config, "dataset.train", image_shape, mesh.size, num_classes=batch_spec["labels"].shape[-1]
    )
    images_per_step = math.prod(image_shape[:-3])
    total_steps = config.train_steps or math.ceil(
        config.train_epochs * source.num_examples(config.dataset.train) / images_per_step
    )
    plain = config.to_dict()
    model = create_model(
        plain["model"], deterministic=False, shard_kernels=config.shard_dense_params
    )
    check_schedule(config, total_steps)
    optimizer = create_optimizer(total_steps=total_steps, **plain["optimizer"])
    schedule = create_learning_rate_schedule(
        total_steps=total_steps, **plain["optimizer"]["learning_rate"]
    )
    step_shape = (images_per_step, *image_shape[-3:])
    abstract_state = abstract_train_state(
        model,
        optimizer,
        step_shape,
        mesh,
        config.params_axis_resources if config.model.encoder.moe.layers else (),
        use_ema=config.ema_decay is not None,
    )
    check_state_fits(abstract_state, mesh.local_devices)
    mixup = plain["mixup"] and {**plain["mixup"], "num_devices": mesh.size}
    options = {
        "loss": plain["loss"],
        "auxiliary_loss_weights": plain["auxiliary_loss"],
        "consistency": plain["consistency"],
        "mixup_options": mixup,
        "microsteps": config.microsteps,
        "seed": config.seed,
    }
    train_step = make_train_step(
        model,
        optimizer,
        ema_decay=config.ema_decay,
        max_skipped_steps=config.max_skipped_steps,
        **options,
    )
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return Program(
        config=config,
        mesh=mesh,
        batch_spec=batch_spec,
        total_steps=total_steps,
        images_per_step=images_per_step,
        schedule=schedule,
        abstract_state=abstract_state,
        create_state=lambda: create_train_state(
            model, optimizer, step_shape, config.seed, abstract_state
        ),
        gradients=make_gradients(model, **options),
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
        evaluators=create_evaluators(_evaluation_context(config, mesh)),
    )


@dataclasses.dataclass(frozen=True)
class _EvaluationSplit:
    """A split that is evaluated; see `evaluation.evaluator.EvaluationSplit`."""

    section: ml_collections.ConfigDict
    mesh: Mesh
    spec: Mapping[str, jax.ShapeDtypeStruct]

    def batches(self) -> Iterator[Batch]:
        return eval_batches(self.section, self.mesh)


def _evaluation_context(config: ml_collections.ConfigDict, mesh: Mesh) -> EvaluationContext:
    open_split = functools.partial(_open_split, config, mesh)
    splits = {
        name: open_split(section, f"config.dataset.{name}", "labels")
        for name, section in config.dataset.items()
        if name != "train"
    }
    model = create_model(
        evaluation_model(config), deterministic=True, shard_kernels=config.shard_dense_params
    )
    return EvaluationContext(config, model, mesh, splits, open_split)


def _open_split(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    section: ml_collections.ConfigDict,
    field: str,
    labels: str,
) -> _EvaluationSplit:
    pipeline.validate(section, field, labels)
    spec = pipeline.batch_spec(section, train=False)
    num_classes = spec["labels"].shape[-1] if labels == "labels" else None
    check_batch(config, field.removeprefix("config."), spec["image"].shape, mesh.size, num_classes)
    return _EvaluationSplit(section, mesh, spec)
