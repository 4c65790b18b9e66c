"""What a configuration becomes: a mesh, a model, and jitted steps."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import optax
from jax.sharding import Mesh

from vmoe_prc.config import ConfigError, check_batch, complete, evaluation_model, fewshot_sections
from vmoe_prc.data import pipeline, source
from vmoe_prc.evaluation.fewshot import RepresentationStep, make_representation_step
from vmoe_prc.evaluation.step import EvalStep, make_eval_step
from vmoe_prc.models import create_model
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.mesh import create_mesh, replicated
from vmoe_prc.runtime.peaks import peak_flops
from vmoe_prc.schedule import create_learning_rate_schedule
from vmoe_prc.steps.state import TrainState, abstract_train_state, create_train_state
from vmoe_prc.steps.train import Gradients, TrainStep, make_gradients, make_train_step


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
      gradients: The gradients of a step, to be jitted where they are looked into.
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
    gradients: Gradients
    train_step: TrainStep
    eval_step: EvalStep
    representation_step: RepresentationStep

    @property
    def flops_per_step(self) -> float:
        """FLOPs that the model asks for in a step of training, over all devices."""
        height, width, _ = self.specs["train"]["image"].shape[-3:]
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

    @property
    def eval_splits(self) -> list[str]:
        """Names of the splits that are evaluated."""
        return [split for split in self.config.dataset if split != "train"]


def build_program(config: ml_collections.ConfigDict) -> Program:
    """Turns a configuration into jitted steps, having checked all of it.

    Raises:
      ConfigError: If the configuration cannot be used.
    """
    config = complete(config)
    mesh = create_mesh(config.num_expert_partitions)
    for split, dataset in config.dataset.items():
        pipeline.validate(dataset, f"config.dataset.{split}")
    specs = {
        split: pipeline.batch_spec(dataset, train=split == "train")
        for split, dataset in config.dataset.items()
    }
    for split, spec in specs.items():
        check_batch(config, f"dataset.{split}", spec["image"].shape, mesh.size)
    _check_fewshot(config, mesh)
    image_shape = specs["train"]["image"].shape
    images_per_step = math.prod(image_shape[:-3])
    total_steps = config.train_steps or math.ceil(
        config.train_epochs * source.num_examples(config.dataset.train) / images_per_step
    )
    plain = config.to_dict()
    sharding = {"shard_kernels": config.shard_dense_params}
    model = create_model(plain["model"], deterministic=False, **sharding)
    eval_model = create_model(evaluation_model(config), deterministic=True, **sharding)
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
        specs=specs,
        total_steps=total_steps,
        images_per_step=images_per_step,
        schedule=schedule,
        eval_model=eval_model,
        abstract_state=abstract_state,
        create_state=lambda: create_train_state(
            model, optimizer, step_shape, config.seed, abstract_state
        ),
        gradients=make_gradients(model, **options),
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
            pipeline.validate(section, f"config.fewshot.datasets.{name}", labels="label")
        # Its splits differ in nothing that shapes a batch.
        image_shape = pipeline.batch_spec(sections["test"], train=False)["image"].shape
        check_batch(config, "fewshot", image_shape, mesh.size)
