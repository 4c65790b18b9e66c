"""The interface of evaluators, and what they can use.

A new evaluator is one file that registers a function from an `EvaluationContext` and options
to an `Evaluator`:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class ConfidenceOptions:
        split: str = option("test", "Split to evaluate.")

    @EVALUATORS.register("confidence", options=ConfidenceOptions)
    def confidence(context: EvaluationContext, *, split: str) -> Evaluator:
        step = jax.jit(...)

        def evaluate(params):
            ...
            return {"mean": 0.9, "histogram": lambda: figure}

        return evaluate

The configuration switches it on, under a label that prefixes the names of its results:

    config.evaluators = {"sure": {"name": "confidence", "every_steps": 500, "split": "val"}}

Here the metric `sure/mean` goes to `metrics.jsonl`, TensorBoard and the summary, and the figure
`sure/histogram` to TensorBoard and to `sure-histogram.png`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import ml_collections
from jax.sharding import Mesh

from vmoe_prc.steps.views import Batch

# A metric, or a function that draws a Matplotlib figure; only process 0 calls it.
Result = float | Callable[[], Any]
# From parameters to results by name. With several processes all of them call it.
Evaluator = Callable[[Any], Mapping[str, Result]]


@runtime_checkable
class EvaluationSplit(Protocol):
    """A split of a data set that is evaluated.

    Attributes:
      spec: Shapes and dtypes of its global batches.
      value_range: (low, high) of the pixels of its images: the values of black and white.
      class_names: Names of the classes in the order of the labels; None if they are unknown.
    """

    spec: Mapping[str, jax.ShapeDtypeStruct]
    value_range: tuple[float, float]
    class_names: Sequence[str] | None

    def batches(self) -> Iterator[Batch]:
        """Reads every image once; global batches on the devices, with `mask` (B,) bool."""
        ...


@dataclasses.dataclass(frozen=True)
class EvaluationContext:
    """Arguments of every evaluator.

    Attributes:
      config: The completed configuration.
      model: The model as it is evaluated, `deterministic=True`.
      mesh: The device mesh.
      splits: Splits of `config.dataset` without `train`, by name.
      open_split: Opens another split, from a completed section like one of `config.dataset`,
        the section's name for errors, and what its batches must have besides `image`:
        'labels' (one-hot) or 'label'. Raises `ConfigError`.
    """

    config: ml_collections.ConfigDict
    model: nn.Module
    mesh: Mesh
    splits: Mapping[str, EvaluationSplit]
    open_split: Callable[[ml_collections.ConfigDict, str, str], EvaluationSplit]
