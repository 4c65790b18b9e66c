"""A model whose routers learn from a router on a frozen dense teacher (TGR-MoE)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config import Config
from vmoe_prc.config.metric_names import block_number
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import MODELS
from vmoe_prc.models.options import MAX_SIZE, ModelOptions
from vmoe_prc.models.routing import Routing
from vmoe_prc.models.vit import VisionTransformerMoe

TEACHER = "Teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """The dense teacher; what is None is as in the student."""

    hidden_size: int | None = option(None, "Width of a token.", minimum=1, maximum=MAX_SIZE)
    mlp_dim: int | None = option(None, "Hidden width of the MLPs.", minimum=1, maximum=MAX_SIZE)
    num_heads: int | None = option(None, "Attention heads.", minimum=1, maximum=MAX_SIZE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherGuidedOptions(ModelOptions):
    """Options of `TeacherGuidedMoe`."""

    teacher: TeacherOptions = option(TeacherOptions, "The frozen dense model.")


@MODELS.register(options=TeacherGuidedOptions)
class TeacherGuidedMoe(VisionTransformerMoe):
    """A V-MoE and its teacher, a frozen dense vision transformer with the same number of blocks.

    In training the teacher sees the same images. For each MoE block, a linear router reads what
    the MLP of the teacher's block of the same number reads; its gates are in the `Routing` record
    as `teacher_gates`, which the losses `teacher_*` of `auxiliary_loss` use. In evaluation the
    teacher does not run.

    The teacher's parameters are below `Teacher`, where `initialization.rules` put them from a
    dense checkpoint; no gradient reaches them, and `optimizer.frozen_pattern` has to keep weight
    decay away. `recipes.teacher_guided` sets all of it. The teachers' routers are
    `TeacherRouter_{block}`.

    Kada et al., Teacher-Guided Routing for Sparse Vision Mixture-of-Experts, CVPR 2026 (arXiv
    2604.21330), of which we read an abstract and notes of others: the linear router on
    layer-aligned features, the losses and their weights are theirs; that the features are the
    inputs of the MLPs is inferred.

    Attributes:
      teacher: Options of the teacher that differ from the model's, see `TeacherOptions`.
    """

    teacher: Config | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W 3"], mask: Bool[Array, " N"] | None = None
    ) -> tuple[Float[Array, "N classes"], dict[str, Routing]]:
        """Classifies images; see `VisionTransformerMoe`."""
        logits, routings = super().__call__(images, mask)
        if self.deterministic and not self.is_initializing():
            return logits, routings
        features = self._teacher_features(images)
        for block, routing in routings.items():
            scores = nn.Dense(
                routing.gates.shape[-1],
                use_bias=False,
                dtype=jnp.float32,
                precision=jax.lax.Precision.HIGHEST,
                dot_general=self._dot_general,
                name=f"TeacherRouter_{block_number(block)}",
            )(features[block])
            gates = jax.nn.softmax(scores).reshape(routing.gates.shape)
            routings[block] = dataclasses.replace(routing, teacher_gates=gates)
        return logits, routings

    @nn.nowrap
    def _teacher_features(self, images: Array) -> dict[str, Float[Array, "N T D"]]:
        """Runs the teacher; returns the inputs of the MLPs of its blocks, float32."""
        changes = {name: value for name, value in (self.teacher or {}).items() if value is not None}
        size = changes.pop("hidden_size", self.hidden_size)
        encoder = {**self.encoder, "moe": {}, "dropout_rate": 0.0, "attention_dropout_rate": 0.0}
        # There is no backward pass, and in blocks that are computed again modules have no path.
        encoder["remat"] = "none"
        model = VisionTransformerMoe(
            num_classes=None,
            patch_size=self.patch_size,
            hidden_size=size,
            encoder={**encoder, **changes},
            classifier=self.classifier,
            deterministic=True,
            dtype=self.dtype,
            shard_kernels=self.shard_kernels,
            name=TEACHER,
        )
        features: dict[str, Any] = {}

        def keep_inputs(next_function, args, kwargs, context):
            path = context.module.scope.path
            if path[0] == TEACHER and path[-1] == "Mlp" and context.method_name == "__call__":
                features[path[-2]] = jax.lax.stop_gradient(args[0]).astype(jnp.float32)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(keep_inputs):
            model(images)
        return features
