"""Models of the V-MoE paper on made-up images, as compiled functions ready to be timed."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vmoe_prc.config import Config
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.models import create_model
from vmoe_prc.models.dispatch import DispatcherOptions, buffer_capacity
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.recipes import IMAGES_PER_GROUP, adam, router_losses, vmoe_model
from vmoe_prc.runtime.mesh import create_mesh
from vmoe_prc.steps.state import abstract_train_state, create_train_state
from vmoe_prc.steps.train import make_train_step
from vmoe_prc.steps.views import Batch

NUM_CLASSES = 1000
# V-MoE's own method first: the baseline.
ALL_METHODS = ["einsum", *(name for name in DISPATCHERS if name != "einsum")]


@dataclasses.dataclass
class Carry:
    """A state that functions take, donated, and hand on to the next one."""

    value: Any


class Program(NamedTuple):
    """A compiled function with its arguments.

    Attributes:
      run: Calls the function once; returns its results, which may not be ready yet.
      compiled: The compiled function.
    """

    run: Callable[[], Any]
    compiled: jax.stages.Compiled


class Training(NamedTuple):
    """The whole train step of a model, and the optimiser's part of it."""

    step: Program
    update: Program


def model_config(
    description: str,
    image_size: int,
    method: str | None,
    dtype: str = "float32",
    capacity_factor: float = 1.05,
    dropout_rate: float = 0.0,
) -> Config:
    """Returns the `model` that a description names, or the dense model of the same shape.

    Args:
      description: Such as `ViT-S/32, E=8, K=2, Last 2`, see `recipes.parse_description`.
      image_size: Side of the images in pixels.
      method: Dispatch method; None for the dense model.
      dtype: Dtype of the computation.
      capacity_factor: Capacity of the experts.
      dropout_rate: Dropout inside the experts.
    """
    model = vmoe_model(description, image_size, NUM_CLASSES) | {"dtype": dtype}
    moe = model["encoder"]["moe"]
    if method is None:
        moe["layers"] = ()
    else:
        moe["router"]["dispatcher"] = {"name": method, "capacity_factor": capacity_factor}
    moe["dropout_rate"] = dropout_rate
    return model


def flops_ratio(model: Config, dense: Config, image_size: int) -> float:
    """Operations of a model relative to a dense one; its K experts are all counted."""
    size = (image_size, image_size)
    return forward_flops_per_image(model, size) / forward_flops_per_image(dense, size)


def padded_flops_ratio(model: Config, dense: Config, image_size: int) -> float:
    """As `flops_ratio`, but an expert's operations count all rows of its buffers."""
    moe = model["encoder"]["moe"]
    router, group_size = moe["router"], moe["group_size"]
    k, ratio = router["num_selected_experts"], flops_ratio(model, dense, image_size)
    if not DISPATCHERS[router["dispatcher"]["name"]].has_capacity:
        return ratio
    options = {key: value for key, value in router["dispatcher"].items() if key != "name"}
    capacity = buffer_capacity(group_size, k, moe["num_experts"], DispatcherOptions(**options))
    one_more = {"router": router | {"num_selected_experts": k + 1}}
    more = model | {"encoder": model["encoder"] | {"moe": moe | one_more}}
    of_one_choice = flops_ratio(more, dense, image_size) - ratio
    free = capacity * moe["num_experts"] / group_size - k
    return ratio + free * of_one_choice


def make_state(model: Config, image_size: int) -> Carry:
    """Initialises the training state of a model."""
    module, optimizer = create_model(model, deterministic=False), _optimizer()
    shape = (IMAGES_PER_GROUP, image_size, image_size, 3)
    abstract = abstract_train_state(
        module, optimizer, shape, create_mesh(devices=jax.devices()[:1])
    )
    return Carry(create_train_state(module, optimizer, shape, 0, abstract))


def make_batch(image_size: int, num_images: int, *, two_views: bool = False) -> Batch:
    """Draws images and labels; two views are crops of the image, as the recipe's are."""
    rng = np.random.default_rng(0)
    shape = (num_images // 2, 2) if two_views else (num_images,)
    labels = jax.nn.one_hot(rng.integers(0, NUM_CLASSES, shape[0]), NUM_CLASSES)
    image = jnp.asarray(rng.uniform(-1, 1, (*shape, image_size, image_size, 3)), jnp.float32)
    if not two_views:
        return {"image": image, "labels": labels}
    # The image has the size of a view; crops are squares of 5 to 100% of its area.
    scale = 1 / np.sqrt(rng.uniform(0.05, 1, shape))
    offset = (1 - scale) * rng.uniform(0, 1, (2, *shape)) * image_size
    matrix = np.zeros((*shape, 3, 3), np.float32)
    matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2] = scale, scale, 1
    matrix[..., 0, 2], matrix[..., 1, 2] = offset
    return {"image": image, "labels": labels, "view_from_image": jnp.asarray(matrix)}


def make_training(
    model: Config, image_size: int, num_images: int, carry: Carry, *, prc: bool = False
) -> Training:
    """Compiles the recipe's train step: sigmoid cross-entropy, router losses, Adam.

    Args:
      model: Config of the model.
      image_size: Side of the images in pixels.
      num_images: Images that the model sees in a step.
      carry: State, which all trainings of models with equal parameters may share.
      prc: Whether the images are pairs of views, trained with PRC instead of the balance
        losses.
    """
    optimizer = _optimizer()

    def update(state, _):
        updates, opt_state = optimizer.update(state.params, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state), None

    step = lower_step(model, image_size, num_images, carry, prc=prc)
    return Training(step.compile(), _Lowered(update, carry, ()).compile())


def lower_step(
    model: Config, image_size: int, num_images: int, carry: Carry, *, prc: bool = False
) -> "_Lowered":
    """Lowers the train step; its arguments are as in `make_training`."""
    losses = router_losses(prc)
    step = make_train_step(
        create_model(model, deterministic=False),
        _optimizer(),
        loss={"name": "sigmoid_xent"},
        balance=losses["auxiliary_loss"],
        consistency=losses["consistency"],
    )
    return _Lowered(step, carry, make_batch(image_size, num_images, two_views=prc))


def compile_program(function: Callable[..., Any], *args: Any) -> Program:
    """Compiles a function of these arguments."""
    compiled = jax.jit(function).lower(*args).compile()
    return Program(lambda: compiled(*args), compiled)


class _Lowered:
    """A function (state, batch) -> (state, results), lowered; any thread may compile it."""

    def __init__(self, function: Callable[..., Any], carry: Carry, batch: Any):
        self._carry, self._batch = carry, batch
        self._lowered = jax.jit(function, donate_argnums=0).lower(carry.value, batch)

    def compile(self) -> Program:
        """Compiles the function; running it replaces the state by the next one."""
        compiled = self._lowered.compile()
        carry, batch = self._carry, self._batch

        def run():
            carry.value, results = compiled(carry.value, batch)
            return carry.value.params, results

        return Program(run, compiled)


def _optimizer() -> optax.GradientTransformation:
    schedule = adam("warmup_linear_decay", 7.5e-4, 5e-6, 10_000)
    return create_optimizer(total_steps=1_000_000, **schedule)
