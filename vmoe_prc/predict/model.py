"""A trained model that is asked about images: classes, routing, representations."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vmoe_prc.arrays import Array, Bool, Float, Int
from vmoe_prc.checkpoints.metadata import read_metadata
from vmoe_prc.checkpoints.params import check_params, read_params
from vmoe_prc.config import ConfigError, complete, evaluation_model
from vmoe_prc.losses.classification import class_probabilities
from vmoe_prc.models import apply_model, create_model
from vmoe_prc.predict.preprocessing import ImageLike, Preprocessing, evaluation_preprocessing

BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes of an image, most probable first.

    Attributes:
      classes: Names, or numbers as text where a run has no names.
      probabilities: Their probabilities: of a softmax they sum to 1 over all classes, of a
        sigmoid each class has its own.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ImageRouting:
    """The choices of one block for N images.

    Attributes:
      experts: (N, T, K) int32 experts of each token, best first; token 0 is the class token
        where there is one, patches follow in row-major order.
      gates: (N, T, K) float32 gates of the chosen experts.
      kept: (N, T, K) bool, False where an expert did not take the token.
    """

    experts: Int[np.ndarray, "N T K"]
    gates: Float[np.ndarray, "N T K"]
    kept: Bool[np.ndarray, "N T K"]


class TrainedModel:
    """A model with its parameters, preprocessing and classes; made by `open_model`.

    Every image is routed separately and no token is dropped, so that a prediction does not depend
    on the other images. With Expert Choice each image has the capacity of the evaluation.

    Attributes:
      name: Name of the run or checkpoint.
      config: The completed configuration.
      classes: Names of the classes in the order of the logits.
      preprocessing: Turns an image into the pixels that the model sees.
      params: The parameters, nested by name.
    """

    def __init__(
        self,
        name: str,
        config: ml_collections.ConfigDict,
        params: Mapping[str, Any],
        classes: Sequence[str] | None = None,
    ):
        """Prepares a model.

        Args:
          name: Its name in output.
          config: Completed configuration.
          params: Parameters, nested by name.
          classes: Names of the classes; their numbers if None.

        Raises:
          ConfigError: If the number of names is not the number of classes, or the configuration
            evaluates no split with one view.
        """
        count = config.model.num_classes
        if classes is not None and len(classes) != count:
            raise ConfigError("classes", len(classes), f"expected the names of {count} classes")
        self.name, self.config = name, config
        self.classes = tuple(classes or map(str, range(count)))
        self.preprocessing: Preprocessing = evaluation_preprocessing(config)
        self.params = jax.device_put(params)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        height, width = self.config.model.patch_size
        return height, width

    @functools.cached_property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the preprocessed images."""
        # It follows from the preprocessing.
        height, width, _ = self.preprocessing(np.zeros((64, 64, 3), np.uint8)).shape
        return height, width

    @property
    def num_experts(self) -> int:
        """E."""
        return self.config.model.encoder.moe.num_experts

    @property
    def class_token(self) -> bool:
        """Whether token 0 is the class token."""
        return self.config.model.classifier == "token"

    def predict(
        self, images: Iterable[ImageLike], top_k: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Classifies images.

        Args:
          images: Paths, PIL images, encoded bytes, or uint8 arrays (H, W, 3) or (H, W).
          top_k: Classes per image, all if there are fewer.
          batch_size: Images at a time.

        Raises:
          BadExampleError: If an image cannot be read or decoded.
        """
        pixels = (self.preprocessing(image) for image in images)
        probabilities = self.probabilities(pixels, batch_size)
        return [self.top(row, top_k) for row in probabilities]

    def top(self, probabilities: Float[np.ndarray, " classes"], k: int) -> Prediction:
        """Returns the k most probable classes of one image."""
        order = np.argsort(-probabilities, kind="stable")[:k]
        names = tuple(self.classes[i] for i in order)
        return Prediction(names, tuple(float(probabilities[i]) for i in order))

    def probabilities(
        self, pixels: Iterable[Float[np.ndarray, "H W 3"]], batch_size: int = BATCH_SIZE
    ) -> Float[np.ndarray, "N classes"]:
        """Returns the probabilities of all classes for preprocessed images, (N, classes)."""
        parts = list(self.probabilities_by_batch(pixels, batch_size))
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)

    def probabilities_by_batch(
        self, pixels: Iterable[Float[np.ndarray, "H W 3"]], batch_size: int = BATCH_SIZE
    ) -> Iterator[Float[np.ndarray, "B classes"]]:
        """Yields `probabilities` of one batch after the other; the last can have fewer images."""
        for logits, _ in self._run(pixels, batch_size, self._apply(headless=False)):
            yield np.asarray(self._probabilities(jnp.asarray(logits)))

    def probabilities_and_routing(
        self, pixels: Iterable[Float[np.ndarray, "H W 3"]], batch_size: int = BATCH_SIZE
    ) -> tuple[Float[np.ndarray, "N classes"], dict[str, ImageRouting]]:
        """Returns `probabilities` and `routing_of_pixels` of at least one image, computed once."""
        parts = list(self._run(pixels, batch_size, self._apply(headless=False)))
        if not parts:
            raise ValueError("expected at least one image")
        logits, joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        routings = {block: ImageRouting(**choices) for block, choices in joined.items()}
        return np.asarray(self._probabilities(jnp.asarray(logits))), routings

    def routing(
        self, images: Iterable[ImageLike], batch_size: int = BATCH_SIZE
    ) -> dict[str, ImageRouting]:
        """Returns the choices of each block with experts, by its name.

        Args:
          images: As of `predict`, at least one.
          batch_size: Images at a time.
        """
        pixels = (self.preprocessing(image) for image in images)
        return self.routing_of_pixels(pixels, batch_size)

    def routing_of_pixels(
        self, pixels: Iterable[Float[np.ndarray, "H W 3"]], batch_size: int = BATCH_SIZE
    ) -> dict[str, ImageRouting]:
        """Like `routing`, of images that are preprocessed already."""
        return self.probabilities_and_routing(pixels, batch_size)[1]

    def represent(
        self, images: Iterable[ImageLike], batch_size: int = BATCH_SIZE
    ) -> Float[np.ndarray, "N D"]:
        """Returns what the head sees of each image, (N, D) float32.

        Args:
          images: As of `predict`, at least one.
          batch_size: Images at a time.
        """
        pixels = (self.preprocessing(image) for image in images)
        parts = [x for x, _ in self._run(pixels, batch_size, self._apply(headless=True))]
        if not parts:
            raise ValueError("expected at least one image")
        return np.concatenate(parts)

    def forward(self, pixels: Float[Array, "N H W 3"]) -> dict[str, Array]:
        """Applies the model to preprocessed images; JAX can trace it, for any N.

        Returns:
          `logits` and `probabilities`, (N, classes) float32, and what `ImageRouting` holds of
          each block with experts, such as `encoderblock_3_experts`.
        """
        logits, choices = self._outputs(self.params, pixels, headless=False)
        outputs = {"logits": logits, "probabilities": self._probabilities(logits)}
        for block, values in choices.items():
            outputs |= {f"{block}_{name}": value for name, value in values.items()}
        return outputs

    def _probabilities(self, logits: Array) -> Array:
        return class_probabilities(logits, self.config.loss.name)

    @functools.cache  # noqa: B019  A model lives as long as the program.
    def _apply(self, headless: bool) -> Callable[[Any, jax.Array], Any]:
        """Builds the jitted function (params, pixels) -> (outputs, choices by block)."""
        return jax.jit(functools.partial(self._outputs, headless=headless))

    def _outputs(
        self, params: Mapping[str, Any], pixels: Array, headless: bool
    ) -> tuple[Array, dict[str, dict[str, Array]]]:
        model = self._model((pixels.shape[1], pixels.shape[2]), headless)
        outputs, routings = apply_model(model, params, pixels)
        choices = {}
        for block, routing in routings.items():
            gates = jnp.take_along_axis(routing.gates, routing.experts, axis=-1)
            values = {"experts": routing.experts, "gates": gates, "kept": routing.kept}
            # A group is an image: (G, S, K) is (N, T, K).
            choices[block] = values
        return outputs, choices

    def _model(self, image_size: tuple[int, int], headless: bool) -> nn.Module:
        model = create_model(self.model_options(image_size), deterministic=True)
        return model.clone(num_classes=None) if headless else model

    def model_options(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Returns the options of the model as it is used: groups are images, none is dropped.

        Args:
          image_size: (height, width) of the preprocessed images.
        """
        options = evaluation_model(self.config)
        moe = options["encoder"]["moe"]
        if moe["layers"]:
            grid = [side // p for side, p in zip(image_size, self.patch_size, strict=True)]
            router = dict(moe["router"])
            if "num_selected_experts" in router:
                router["dispatcher"] = {"name": "dropless"}
            group_size = grid[0] * grid[1] + self.class_token
            moe = {**moe, "group_size": group_size, "router": router}
            options = {**options, "encoder": {**options["encoder"], "moe": moe}}
        return options

    def _run(
        self, pixels: Iterable[np.ndarray], batch_size: int, apply: Callable[..., Any]
    ) -> Iterator[Any]:
        """Yields the results of batches; the last is padded, so that nothing compiles twice."""
        batch: list[np.ndarray] = []
        for image in pixels:
            batch.append(image)
            if len(batch) == batch_size:
                yield jax.device_get(apply(self.params, np.stack(batch)))
                batch = []
        if batch:
            padding = [np.zeros_like(batch[0])] * (batch_size - len(batch))
            results = jax.device_get(apply(self.params, np.stack(batch + padding)))
            yield jax.tree.map(lambda x: x[: len(batch)], results)


def open_model(
    path: str | os.PathLike[str],
    config: ml_collections.ConfigDict | None = None,
    classes: Sequence[str] | None = None,
) -> TrainedModel:
    """Opens a trained model; its data set is not needed.

    Args:
      path: A work directory, a folder that `checkpoints.export` wrote, or a checkpoint of any
        other format that `read_params` reads: a released V-MoE checkpoint, `.safetensors`,
        `.npz`.
      config: Configuration of a checkpoint that has none with it.
      classes: Names of the classes, if they are not with the checkpoint either.

    Raises:
      ConfigError: If there is no configuration, or it cannot be used.
      CheckpointError: If there is no checkpoint, it does not fit the configuration, or its
        parameters are not finite.
    """
    metadata = read_metadata(path)
    if config is None:
        if "config" not in metadata:
            expected = "holds no configuration: give its model's configuration (--config)"
            raise ConfigError("path", os.fspath(path), expected)
        config = ml_collections.ConfigDict(metadata["config"])
    flat = read_params(path)
    params = flax.traverse_util.unflatten_dict(flat, sep="/")["params"]
    name = os.path.basename(os.path.normpath(path))
    model = TrainedModel(name, complete(config), params, classes or metadata.get("classes"))
    height, width = model.image_size
    check_params(model._model((height, width), headless=False), (1, height, width, 3), flat, path)
    return model
