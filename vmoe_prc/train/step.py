"""Builds the train step of a configuration for a mesh; needs no data and no devices."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import ml_collections
import optax
from jax.sharding import Mesh

from vmoe_prc.config import check_batch, check_schedule
from vmoe_prc.models import create_model
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.mesh import batch_sharding
from vmoe_prc.schedule import create_learning_rate_schedule
from vmoe_prc.steps.state import TrainState, abstract_train_state, create_train_state
from vmoe_prc.steps.train import (
    Gradients,
    TrainStep,
    make_gradients,
    make_train_step,
    placement_of_updates,
)

BatchSpec = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """The step of a configuration.

    Attributes:
      model: The model as it is trained.
      views_per_step: Views that the model sees in a step.
      image_shape: (N, H, W, 3) of these views.
      schedule: Learning rate by step.
      abstract_state: Shapes and shardings of the training state.
      create_state: Creates the initial state.
      gradients: Function of the gradients of a step; the caller jits it.
      train_step: The jitted update; its first argument is donated.
    """

    model: nn.Module
    views_per_step: int
    image_shape: tuple[int, int, int, int]
    schedule: optax.Schedule
    abstract_state: TrainState
    create_state: Callable[[], TrainState]
    gradients: Gradients
    train_step: TrainStep


def views_per_step(batch_spec: BatchSpec) -> int:
    """Returns the number of views in a global batch."""
    return math.prod(batch_spec["image"].shape[:-3])


def build_step(
    config: ml_collections.ConfigDict, mesh: Mesh, batch_spec: BatchSpec, total_steps: int
) -> BuiltStep:
    """Builds the step.

    Args:
      config: The completed configuration.
      mesh: The device mesh, of devices that need not be there.
      batch_spec: Shapes and dtypes of the global batches of training.
      total_steps: Steps of the whole training.

    Raises:
      ConfigError: If the batch does not fit the model and the devices.
    """
    image_shape = batch_spec["image"].shape
    check_batch(
        config, "dataset.train", image_shape, mesh.size, num_classes=batch_spec["labels"].shape[-1]
    )
    check_schedule(config, total_steps)
    plain = config.to_dict()
    model = create_model(
        plain["model"], deterministic=False, shard_kernels=config.shard_dense_params
    )
    optimizer = create_optimizer(total_steps=total_steps, **plain["optimizer"])
    step_shape = (views_per_step(batch_spec), *image_shape[-3:])
    abstract_state = abstract_train_state(
        model,
        optimizer,
        step_shape,
        mesh,
        config.params_axis_resources if config.model.encoder.moe.layers else (),
        use_ema=config.ema_decay is not None,
        shard_optimizer=config.shard_optimizer,
    )
    placement = {}
    if config.shard_optimizer:
        placement["place"] = placement_of_updates(abstract_state.params)
    options = {
        "loss": plain["loss"],
        "balance": plain["auxiliary_loss"],
        "consistency": plain["consistency"],
        "mixup_options": plain["mixup"] and {**plain["mixup"], "num_devices": mesh.size},
        "adversarial": plain["adversarial"],
        "microsteps": config.microsteps,
        "gradient_dtype": config.gradient_dtype,
        "seed": config.seed,
        "total_steps": total_steps,
    }
    train_step = make_train_step(
        model,
        optimizer,
        ema_decay=config.ema_decay,
        max_skipped_steps=config.max_skipped_steps,
        **placement,
        **options,
    )
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return BuiltStep(
        model=model,
        views_per_step=step_shape[0],
        image_shape=step_shape,
        schedule=create_learning_rate_schedule(
            total_steps=total_steps, **plain["optimizer"]["learning_rate"]
        ),
        abstract_state=abstract_state,
        create_state=lambda: create_train_state(
            model, optimizer, step_shape, config.seed, abstract_state
        ),
        gradients=make_gradients(model, **options),
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
    )


def abstract_batch(batch_spec: BatchSpec, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as the step takes it, split over the devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in batch_spec.items()
    }
