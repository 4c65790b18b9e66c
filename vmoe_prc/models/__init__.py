"""Vision transformers with sparse mixtures of experts."""

from typing import Any, cast

import flax.linen as nn

from vmoe_prc.arrays import Array
from vmoe_prc.config import Config
from vmoe_prc.config.registry import MODELS
from vmoe_prc.models.routing import Routing
from vmoe_prc.models.vit import VisionTransformerMoe

__all__ = ["Routing", "VisionTransformerMoe", "apply_model", "create_model"]


def apply_model(
    model: nn.Module, params: Any, *inputs: Array | None, **options: Any
) -> tuple[Array, dict[str, Routing]]:
    """Applies a model to images.

    Args:
      model: The model.
      params: Its parameters.
      *inputs: (N, H, W, 3) images; and a mask (N,) of those that are no padding, for a model
        that takes it.
      **options: Options of `Module.apply`, such as the random keys `rngs`.

    Returns:
      The outputs, such as logits (N, classes), and the routing of each MoE block by its name.
    """
    # Linen leaves open what `apply` returns: with `mutable`, a pair with further collections.
    outputs = model.apply({"params": params}, *inputs, **options)
    return cast("tuple[Array, dict[str, Routing]]", outputs)


def create_model(
    config: Config, *, deterministic: bool, shard_kernels: bool = False
) -> VisionTransformerMoe:
    """Creates the model of the `model` part of a completed configuration.

    Args:
      config: `name` of the model class, and its attributes.
      deterministic: Whether dropout and routing noise are off, as in evaluation.
      shard_kernels: Whether the kernels of dense layers are split over all devices.
    """
    attributes = {key: value for key, value in config.items() if key != "name"}
    attributes |= {"deterministic": deterministic, "shard_kernels": shard_kernels}
    return MODELS[config["name"]](**attributes)
