"""The training state, and the random keys of a step."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from vmoe_prc.arrays import Leaf
from vmoe_prc.runtime.mesh import AxisRules, split_further, tree_shardings


@flax.struct.dataclass
class TrainState:
    """State of the training after `step` batches.

    Attributes:
      step: int32 scalar.
      params: Parameters, float32.
      opt_state: State of the optimiser, whose count is the number of updates.
      ema_params: Exponential moving average of the parameters, or None.
      skipped_steps: int32 scalar, steps that made no update, since loss, gradients or the
        updated parameters were not finite.
      skipped_in_a_row: int32 scalar, skipped steps since the last update.
    """

    step: Leaf
    params: Any
    opt_state: Any
    ema_params: Any
    skipped_steps: Leaf
    skipped_in_a_row: Leaf

    @property
    def eval_params(self) -> Any:
        """Parameters to evaluate: the average if there is one."""
        return self.params if self.ema_params is None else self.ema_params


def abstract_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int, int],
    mesh: Mesh | AbstractMesh,
    rules: AxisRules = (),
    use_ema: bool = False,
    shard_optimizer: bool = False,
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without making it.

    Args:
      model: The model; with `shard_kernels` its kernels are split over the devices.
      optimizer: The optimiser.
      image_shape: (N, H, W, 3) of the images of a step.
      mesh: The device mesh.
      rules: Pairs (regex of names, mesh axes), see `mesh.tree_shardings`.
      use_ema: Whether to keep an average of the parameters.
      shard_optimizer: Whether the optimiser's state is split over all devices.

    Raises:
      ConfigError: If a rule does not fit the state.
    """
    shapes = jax.eval_shape(lambda: _initialize(model, optimizer, image_shape, 0, use_ema))
    shardings = tree_shardings(shapes, rules, mesh, model.shard_kernels)
    if shard_optimizer:
        split = jax.tree.map(
            lambda x, sharding: split_further(x.shape, sharding),
            shapes.opt_state,
            shardings.opt_state,
        )
        shardings = dataclasses.replace(shardings, opt_state=split)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def create_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int, int],
    seed: int,
    abstract_state: TrainState,
) -> TrainState:
    """Initialises the state; each array is made on its own devices.

    Args:
      model: The model.
      optimizer: The optimiser.
      image_shape: (N, H, W, 3) of the images of a step.
      seed: Seed of the parameters.
      abstract_state: Result of `abstract_train_state` for the same arguments.
    """
    use_ema = abstract_state.ema_params is not None
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(
        lambda: _initialize(model, optimizer, image_shape, seed, use_ema),
        out_shardings=shardings,
    )()


def step_keys(seed: int, step: jax.Array | int) -> dict[str, jax.Array]:
    """Returns the random keys of one training step by purpose; the same after a resume."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    names = ("dropout", "gating", "mixup", "pairs")
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}


def _initialize(model, optimizer, image_shape, seed, use_ema) -> TrainState:
    # Only the parameters' values survive compilation: the forward pass is never run.
    keys = {"params": jax.random.key(seed), **step_keys(seed, 0)}
    params = model.init(keys, jnp.zeros(image_shape))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if use_ema else None,
        skipped_steps=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
