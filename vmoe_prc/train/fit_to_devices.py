"""Sizes of a configuration that are 'auto' become those that fit the devices of the run."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from vmoe_prc.config import ConfigError
from vmoe_prc.recipes import IMAGES_PER_GROUP
from vmoe_prc.runtime.mesh import largest_expert_partitions

AUTO = "auto"


def fit_to_devices(
    config: ml_collections.ConfigDict,
    image_shapes: Mapping[str, tuple[int, ...]],
    devices: Sequence[Any],
) -> ml_collections.ConfigDict:
    """Replaces 'auto' by numbers; the global batch stays as it is.

    Args:
      config: A completed configuration.
      image_shapes: Shape of the global batches of each data set by its name, (B, H, W, 3) or
        (B, 2, H, W, 3); 'train' is among them.
      devices: All devices of the run.

    Returns:
      The configuration, or a copy with numbers, which are logged.

    Raises:
      ConfigError: If an override of the evaluated model is 'auto'.
    """
    overrides = config.evaluate.model_overrides.to_dict().get("encoder", {}).get("moe", {})
    if overrides.get("group_size") == AUTO:
        field = "config.evaluate.model_overrides.encoder.moe.group_size"
        raise ConfigError(field, AUTO, "expected an int; 'auto' is for the model")
    moe = config.model.encoder.moe
    if AUTO not in (moe.group_size, config.num_expert_partitions):
        return config
    config = copy.deepcopy(config)
    moe = config.model.encoder.moe
    if config.num_expert_partitions == AUTO:
        partitions = largest_expert_partitions(moe.num_experts, devices) if moe.layers else 1
        with config.ignore_type():
            config.num_expert_partitions = partitions
        logging.info("%d devices: num_expert_partitions = %d", len(devices), partitions)
    if moe.group_size == AUTO:
        images, tokens = _group(config, image_shapes, len(devices))
        with config.ignore_type():
            moe.group_size = images * tokens * moe.ensemble_size
        logging.info(
            "%d devices: model.encoder.moe.group_size = %d, %d images",
            len(devices),
            moe.group_size,
            images,
        )
    return config


def _group(
    config: ml_collections.ConfigDict,
    image_shapes: Mapping[str, tuple[int, ...]],
    num_devices: int,
) -> tuple[int, int]:
    """Returns the images of a routing group, and the tokens of an image.

    A device has whole groups in training and, where images are of the same size, in evaluation.
    """
    size = image_shapes["train"][-3:]
    patch_height, patch_width = config.model.patch_size
    tokens = (size[0] // patch_height) * (size[1] // patch_width)
    tokens += config.model.classifier == "token"
    shares = []
    for name, shape in image_shapes.items():
        if shape[-3:] == size:
            parts = num_devices * (config.microsteps if name == "train" else 1)
            shares.append(math.prod(shape[:-3]) // parts)
    images = max(math.gcd(*shares), 1)
    largest = max(n for n in range(1, IMAGES_PER_GROUP + 1) if images % n == 0)
    return largest, tokens
