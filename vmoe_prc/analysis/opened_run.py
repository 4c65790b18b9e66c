"""A training run, or another checkpoint, opened for analysis."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.params import read_params
from vmoe_prc.config import ConfigError, check_batch, complete, evaluation_model, nearest
from vmoe_prc.data import pipeline
from vmoe_prc.data.feed import eval_batches
from vmoe_prc.models import create_model
from vmoe_prc.runtime.mesh import create_mesh, tree_shardings
from vmoe_prc.workdir.layout import CONFIG_FILE


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A model with its parameters on the devices, and the data that it was made for.

    Attributes:
      name: What to call it in tables and pictures.
      config: The completed configuration.
      model: The model as it is evaluated.
      params: Its parameters, spread over the mesh.
      mesh: The device mesh.
    """

    name: str
    config: ml_collections.ConfigDict
    model: nn.Module
    params: Any
    mesh: Mesh

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks that have experts, such as `encoderblock_3`."""
        layers = sorted(self.config.model.encoder.moe.layers)
        return [f"encoderblock_{layer}" for layer in layers]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.config.model.encoder.moe.num_experts

    @property
    def num_selected_experts(self) -> int:
        """K; every expert with Expert Choice."""
        return self.config.model.encoder.moe.router.get("num_selected_experts", self.num_experts)

    @property
    def class_token(self) -> bool:
        """Whether token 0 is the class token."""
        return self.config.model.classifier == "token"

    def choose_blocks(self, names: Sequence[str] | None = None) -> list[str]:
        """Returns the blocks asked for, or all that have experts.

        Raises:
          ConfigError: If a block has no experts.
        """
        for name in names or ():
            if name not in self.blocks:
                allowed = f"has no experts; blocks that do: {', '.join(self.blocks) or 'none'}"
                raise ConfigError("--block", name, allowed, nearest(name, self.blocks))
        return list(names or self.blocks)

    def has_two_views(self, split: str) -> bool:
        """Whether the split gives pairs of views."""
        return len(self.batch_spec(split)["image"].shape) == 5

    def choose_split(self, split: str | None, *, two_views: bool | None = None) -> str:
        """Returns the split asked for, or the first to evaluate that has the views needed.

        Args:
          split: A name in `config.dataset`, or None.
          two_views: Whether it must have two views, or one; None if either will do.

        Raises:
          ConfigError: If there is no such split, or its views are not those needed.
        """
        splits = self.config.dataset.keys()
        if split is not None and split not in splits:
            allowed = f"no such split in {self.name}; allowed: {', '.join(splits)}"
            raise ConfigError("--split", split, allowed, nearest(split, splits))
        # The most telling first: other data, then what is held out, then the training data.
        order = sorted(splits, key=lambda name: (name == "train", name.startswith("val"), name))
        candidates = [split] if split else order
        for name in candidates:
            if two_views is None or self.has_two_views(name) == two_views:
                return name
        needed = "two views" if two_views else "one view"
        raise ConfigError("--split", split, f"needs {needed} of each image, as two_views makes")

    def batch_spec(self, split: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the batches of a split.

        Raises:
          ConfigError: If its data cannot be used on this machine.
        """
        dataset = self.config.dataset[split]
        pipeline.validate(dataset, f"config.dataset.{split}")
        return pipeline.batch_spec(dataset, train=False)

    def batches(self, split: str) -> Iterator[dict[str, jax.Array]]:
        """Reads every image of a split once; global batches on the devices, with `mask`."""
        spec = self.batch_spec(split)
        check_batch(self.config, f"dataset.{split}", spec["image"].shape, self.mesh.size)
        return eval_batches(self.config.dataset[split], self.mesh)


def open_run(workdir: str | os.PathLike[str]) -> OpenedRun:
    """Opens the newest checkpoint of a work directory.

    Raises:
      ConfigError: If the directory has no run, or its configuration cannot be used here.
      CheckpointError: If it has no checkpoint, or one that does not fit the model.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        expected = f"is not the work directory of a run: {path.name} cannot be read ({error})"
        raise ConfigError("--workdir", str(workdir), expected) from None
    return open_checkpoint(ml_collections.ConfigDict(config), workdir)


def open_checkpoint(config: ml_collections.ConfigDict, prefix: str | os.PathLike[str]) -> OpenedRun:
    """Opens a checkpoint of any format that `read_params` reads.

    Args:
      config: The configuration that names its model and the data to analyse it on.
      prefix: Where it is.

    Raises:
      ConfigError: If the configuration cannot be used.
      CheckpointError: If there is no checkpoint, or it does not fit the model.
    """
    config = complete(config)
    # What trained on a pod is analysed on whatever devices there are.
    mesh = create_mesh(math.gcd(config.num_expert_partitions, jax.device_count()))
    model = create_model(evaluation_model(config), deterministic=True)
    flat = read_params(prefix)
    name = epath.Path(prefix).name or os.fspath(prefix)
    _check_fit(OpenedRun(name, config, model, None, mesh), flat, prefix)
    params = flax.traverse_util.unflatten_dict(flat, sep="/")["params"]
    rules = config.params_axis_resources if config.model.encoder.moe.layers else ()
    shardings = tree_shardings({"params": params}, rules, mesh)["params"]
    return OpenedRun(name, config, model, jax.device_put(params, shardings), mesh)


def name_apart(
    runs: Sequence[OpenedRun], places: Sequence[str | os.PathLike[str]]
) -> list[OpenedRun]:
    """Gives runs of the same name that of their parent folder, too, and else a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = ["/".join(epath.Path(place).parts[-2:]) for place in places]
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [
        dataclasses.replace(run, name=f"{name} ({count + 1})" if count else name)
        for run, name, count in zip(runs, names, counts, strict=True)
    ]


def _check_fit(run: OpenedRun, flat: Mapping[str, np.ndarray], prefix: Any) -> None:
    """Compares the checkpoint with what the model would make for images of its data."""
    *views, height, width, channels = run.batch_spec("train")["image"].shape
    images = jax.ShapeDtypeStruct((math.prod(views), height, width, channels), jnp.float32)
    expected = jax.eval_shape(run.model.init, jax.random.key(0), images)
    expected = flax.traverse_util.flatten_dict(expected, sep="/")
    for name in sorted(expected.keys() | flat.keys()):
        found, wanted = (x[name].shape if name in x else "nothing" for x in (flat, expected))
        if found != wanted:
            raise CheckpointError(
                f"{prefix}: {name} does not fit the configuration: {found} there, {wanted} here"
            )
