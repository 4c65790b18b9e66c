"""The interface of dispatch methods, and the all-to-all that methods with buffers share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.runtime.mesh import BATCH, EXPERT_BUFFERS, all_to_all, on_each_device


@dataclasses.dataclass(frozen=True)
class Experts:
    """The experts of a block, for the dispatch method to apply.

    Attributes:
      apply: Applies each expert to its rows: (E, R, D) -> (E, R, D).
      params: Returns the parameters of `MlpBlock` with a leading axis of E experts.
      dtype: Dtype of the computation.
      dropout_rate: Dropout after either layer of an expert; 0 in evaluation.
      gelu: GELU between the layers: 'tanh' or 'exact'.
      dropout_key: Returns the key of the dropout; None if there is no dropout.
      float32_gradients: Whether gradients of the parameters are summed over devices in float32.
    """

    apply: Callable[[Array], Array]
    params: Callable[[], Mapping[str, Any]]
    dtype: Any
    dropout_rate: float = 0.0
    gelu: str = "tanh"
    dropout_key: Callable[[], jax.Array | None] = lambda: None
    float32_gradients: bool = False


class DispatchMethod:
    """A way to apply the experts of a plan (`dispatch.Dispatcher`) to the tokens.

    Attributes:
      has_capacity: Whether an expert takes a limited number of tokens of a group.
    """

    has_capacity: ClassVar[bool] = True

    @classmethod
    def limit(cls, plan: Any) -> Any:
        """Returns the plan without choices for which the method has no room."""
        return plan

    @classmethod
    def apply(cls, plan: Any, x: Float[Array, "G S D"], experts: Experts) -> Float[Array, "G S D"]:
        """Applies each token's experts and sums their outputs with its weights."""
        raise NotImplementedError


class BufferMethod(DispatchMethod):
    """A method that fills buffers of C slots for each expert and group.

    A subclass moves the data of one device: `to_buffers` and `from_buffers`. With the option
    `bfloat16` the data that they get are rounded; weights and sums have the dtype of the model.
    """

    @staticmethod
    def to_buffers(plan: Any, x: Float[Array, "G S D"], dtype: Any) -> Float[Array, "E G C D"]:
        """Copies the tokens of this device into their slots; free slots hold zeros."""
        raise NotImplementedError

    @staticmethod
    def from_buffers(plan: Any, y: Float[Array, "E G C D"], dtype: Any) -> Float[Array, "G S D"]:
        """Sums the slots of each token of this device with its weights."""
        raise NotImplementedError

    @classmethod
    def apply(cls, plan: Any, x: Float[Array, "G S D"], experts: Experts) -> Float[Array, "G S D"]:
        """Applies each token's experts and sums their outputs with its weights."""
        buffers = cls.dispatch(plan, x)
        with jax.named_scope("experts"):
            buffers = experts.apply(buffers)
        return cls.combine(plan, buffers)

    @classmethod
    def dispatch(cls, plan: Any, x: Float[Array, "G S D"]) -> Float[Array, "E GC D"]:
        """Sends the tokens of all devices to where their experts are."""

        def send(plan, x):
            buffers = cls.to_buffers(plan, _sent(plan, x), x.dtype)
            buffers = all_to_all(buffers, split_axis=0, concat_axis=1)  # (E, G, C, D)
            return buffers.reshape(buffers.shape[0], -1, buffers.shape[-1]).astype(x.dtype)

        with jax.named_scope("dispatch"):
            return on_each_device(send, (BATCH, BATCH), EXPERT_BUFFERS)(plan, x)

    @classmethod
    def combine(cls, plan: Any, y: Float[Array, "E GC D"]) -> Float[Array, "G S D"]:
        """Sends the experts' outputs back to the tokens and sums them."""

        def receive(plan, y):
            buffers = _sent(plan, y)
            buffers = buffers.reshape(buffers.shape[0], -1, plan.capacity, buffers.shape[-1])
            buffers = all_to_all(buffers, split_axis=1, concat_axis=0)  # (E, G, C, D)
            return cls.from_buffers(plan, buffers, y.dtype)

        with jax.named_scope("combine"):
            return on_each_device(receive, (BATCH, EXPERT_BUFFERS), BATCH)(plan, y)


def _sent(plan: Any, x: Array) -> Array:
    return x.astype(jnp.bfloat16) if plan.options.bfloat16 else x
