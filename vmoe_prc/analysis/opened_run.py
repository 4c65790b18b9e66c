"""A training run, or another checkpoint, opened for analysis."""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from vmoe_prc.analysis.naming import distinct_names
from vmoe_prc.arrays import Array
from vmoe_prc.checkpoints.manager import restore_params
from vmoe_prc.checkpoints.names import flattened
from vmoe_prc.checkpoints.params import check_params, read_params
from vmoe_prc.config import ConfigError, check_batch, complete, evaluation_model, nearest
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.data.feed import eval_batches
from vmoe_prc.data.split import Split, open_split
from vmoe_prc.models import create_model
from vmoe_prc.runtime.mesh import create_mesh, shard, tree_shardings
from vmoe_prc.runtime.processes import process_zero_first
from vmoe_prc.workdir.history import read_config
from vmoe_prc.workdir.layout import CHECKPOINT_FOLDER, CONFIG_FILE
from vmoe_prc.workdir.paths import user_path


class ValueRange(NamedTuple):
    """The interval that the preprocessing maps pixel values to.

    Attributes:
      low: Value of a black pixel.
      high: Value of a white pixel.
    """

    low: float
    high: float

    @property
    def size(self) -> float:
        """Length of the interval."""
        return self.high - self.low

    def to_unit(self, images: Array) -> Array:
        """Maps images from this range to [0, 1]."""
        return (images - self.low) / self.size


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A model with its parameters on the devices, and the data it was configured for.

    Attributes:
      name: Its name in tables and figures.
      config: The completed configuration.
      model: The model as it is evaluated.
      params: Its parameters, sharded over the mesh.
      mesh: The device mesh.
    """

    name: str
    config: ml_collections.ConfigDict
    model: nn.Module
    params: Any
    mesh: Mesh
    _splits: dict[str, Split] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks with experts, such as `encoderblock_3`."""
        layers = sorted(self.config.model.encoder.moe.layers)
        return [f"encoderblock_{layer}" for layer in layers]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.config.model.encoder.moe.num_experts

    @property
    def num_selected_experts(self) -> int:
        """K; E with Expert Choice."""
        return self.config.model.encoder.moe.router.get("num_selected_experts", self.num_experts)

    @property
    def experts_choose(self) -> bool:
        """Whether experts choose tokens (Expert Choice)."""
        router = ROUTERS[self.config.model.encoder.moe.router.name]
        return getattr(router, "experts_choose", False)

    @property
    def class_token(self) -> bool:
        """Whether token 0 is the class token."""
        return self.config.model.classifier == "token"

    def choose_blocks(self, names: Sequence[str] | None = None) -> list[str]:
        """Returns the given blocks, or all blocks with experts.

        Raises:
          ConfigError: If a block has no experts, or the model has no such block at all.
        """
        if not self.blocks:
            expected = "has no MoE blocks (model.encoder.moe.layers is empty): nothing to analyse"
            raise ConfigError("--workdir", self.name, expected)
        for name in names or ():
            if name not in self.blocks:
                allowed = f"has no experts; blocks that do: {', '.join(self.blocks) or 'none'}"
                raise ConfigError("--block", name, allowed, nearest(name, self.blocks))
        return list(names or self.blocks)

    def has_two_views(self, split: str) -> bool:
        """Whether the split gives pairs of views."""
        return len(self.batch_spec(split)["image"].shape) == 5

    def choose_split(self, split: str | None, *, two_views: bool | None = None) -> str:
        """Returns the given split, or the first split with the views needed.

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
        # Test data first, then validation data, then the training data.
        order = sorted(splits, key=lambda name: (name == "train", name.startswith("val"), name))
        candidates = [split] if split else order
        for name in candidates:
            if two_views is None or self.has_two_views(name) == two_views:
                return name
        needed = "two views" if two_views else "one view"
        raise ConfigError("--split", split, f"needs {needed} of each image, as two_views makes")

    def split(self, name: str) -> Split:
        """Returns a split of the run's data, which is opened once; all processes call it.

        Raises:
          ConfigError: If its data cannot be used on this machine.
        """
        config, opened = self.config.dataset[name], self._splits.get(name)
        if opened is None or opened.config != config:
            with process_zero_first():  # It may have to prepare the data.
                opened = open_split(config, f"config.dataset.{name}")
            self._splits[name] = opened
        return opened

    def num_images(self, split: str) -> int:
        """Number of images of a split."""
        return self.split(split).num_examples

    def value_range(self, split: str) -> ValueRange:
        """The range of the pixel values of a split."""
        return ValueRange(*(self.split(split).value_range or (-1.0, 1.0)))

    def with_examples(self, split: str, examples: str) -> "OpenedRun":
        """Returns the run with other examples in a split.

        Args:
          split: A name in `config.dataset`.
          examples: Examples as TFDS names them, such as 'test[:1000]'.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.dataset[split].split = examples
        return dataclasses.replace(self, config=config)

    def with_dispatcher(self, **options: Any) -> "OpenedRun":
        """Returns the run with other options of the dispatcher, such as `name='dropless'`.

        Options that are not given keep their value; parameters do not depend on them.
        """
        model = evaluation_model(self.config)
        router = model["encoder"]["moe"]["router"]
        router = {**router, "dispatcher": {**(router["dispatcher"] or {}), **options}}
        moe = {**model["encoder"]["moe"], "router": router}
        model = {**model, "encoder": {**model["encoder"], "moe": moe}}
        return dataclasses.replace(self, model=create_model(model, deterministic=True))

    def dropless(self) -> "OpenedRun":
        """Returns the run with experts that have room for every token.

        Expert Choice is not changed: its capacity is part of its routing.
        """
        return self if self.experts_choose else self.with_dispatcher(name="dropless")

    def batch_spec(self, split: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the batches of a split.

        Raises:
          ConfigError: If its data cannot be used on this machine.
        """
        return self.split(split).batch_spec(train=False)

    def batches(self, split: str) -> Iterator[dict[str, jax.Array]]:
        """Reads every image of a split once; global batches on the devices, with `mask`."""
        spec = self.batch_spec(split)
        check_batch(self.config, f"dataset.{split}", spec["image"].shape, self.mesh.size)
        return eval_batches(self.split(split), self.mesh)


def open_run(workdir: str | os.PathLike[str], step: int | None = None) -> OpenedRun:
    """Opens a checkpoint of a work directory.

    Args:
      workdir: The work directory.
      step: Step of the checkpoint; the newest one if None.

    Raises:
      ConfigError: If the directory has no run, or its configuration cannot be used here.
      CheckpointError: If it has no checkpoint, or one that does not fit the model.
    """
    workdir = user_path(workdir)
    if not (workdir / CONFIG_FILE).exists():
        expected = f"is not the work directory of a run: it has no {CONFIG_FILE}"
        raise ConfigError("--workdir", str(workdir), expected)
    config = read_config(workdir)
    return open_checkpoint(ml_collections.ConfigDict(config), workdir, step)


def open_checkpoint(
    config: ml_collections.ConfigDict, prefix: str | os.PathLike[str], step: int | None = None
) -> OpenedRun:
    """Opens a checkpoint of any format that `read_params` reads.

    Args:
      config: The configuration of its model and of the data to analyse it on.
      prefix: Path of the checkpoint.
      step: Step of the checkpoint if `prefix` is a work directory; the newest one if None.

    Raises:
      ConfigError: If the configuration cannot be used.
      CheckpointError: If there is no checkpoint, it does not fit the model, or its parameters
        are not finite.
    """
    config = complete(config)
    # A run that was trained on a pod can be analysed on fewer devices.
    mesh = create_mesh(math.gcd(config.num_expert_partitions, jax.device_count()))
    model = create_model(evaluation_model(config), deterministic=True)
    flat = read_params(prefix) if step is None else _read_step(epath.Path(prefix), step)
    name = epath.Path(prefix).name or os.fspath(prefix)
    name = name if step is None else f"{name}, step {step}"
    run = OpenedRun(name, config, model, None, mesh)
    *views, height, width, channels = run.batch_spec("train")["image"].shape
    check_params(model, (math.prod(views), height, width, channels), flat, prefix)
    params = flax.traverse_util.unflatten_dict(flat, sep="/")["params"]
    rules = config.params_axis_resources if config.model.encoder.moe.layers else ()
    shardings = tree_shardings({"params": params}, rules, mesh)["params"]
    return OpenedRun(name, config, model, jax.tree.map(shard, params, shardings), mesh)


def name_apart(
    runs: Sequence[OpenedRun], places: Sequence[str | os.PathLike[str]]
) -> list[OpenedRun]:
    """Gives runs different names: adds their parent folder, or else a number, where needed.

    Args:
      runs: The runs.
      places: Their paths.
    """
    parents = ["/".join(epath.Path(place).parts[-2:]) for place in places]
    names = distinct_names([(run.name, p) for run, p in zip(runs, parents, strict=True)])
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _read_step(workdir: epath.Path, step: int) -> dict[str, np.ndarray]:
    """Reads parameters of a step: their average, if the run kept one."""
    params = restore_params(workdir / CHECKPOINT_FOLDER, step)
    return flattened({"params": params})
