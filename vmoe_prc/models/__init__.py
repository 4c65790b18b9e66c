"""Vision transformers with sparse mixtures of experts."""

from vmoe_prc.config import Config
from vmoe_prc.config.registry import MODELS
from vmoe_prc.models.routing import Routing
from vmoe_prc.models.vit import VisionTransformerMoe

__all__ = ["Routing", "VisionTransformerMoe", "create_model"]


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
