"""The losses of TGR-MoE (arXiv 2604.21330): between a student's router and its teacher's.

They are computed where the model gives `teacher_gates`, as `TeacherGuidedMoe` does.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Float
from vmoe_prc.config.options import option
from vmoe_prc.config.registry import BALANCE_LOSSES
from vmoe_prc.losses.balance.entropy import local_entropy_loss
from vmoe_prc.losses.balance.options import BalanceOptions
from vmoe_prc.losses.balance.vmoe import importance_loss
from vmoe_prc.models.routing import Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TeacherOptions(BalanceOptions):
    """The options that the three losses share."""

    teacher_until: float = option(
        0.5,
        "Part of the training after which the losses of a teacher are 0.",
        minimum=0.0,
        maximum=1.0,
    )

    @property
    def until(self) -> float:
        """Part of the training in which the loss counts."""
        return self.teacher_until


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherOptions(_TeacherOptions):
    """Options of `teacher_loss`."""

    teacher_loss_weight: float = option(
        0.0,
        "Weight in each block of the divergence from the teacher's gates; TGR-MoE has 5 / number "
        "of MoE blocks.",
        minimum=0.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherImportanceOptions(_TeacherOptions):
    """Options of `teacher_importance_loss`."""

    teacher_importance_loss_weight: float = option(
        0.0, "Weight of the importance loss of the teacher's gates; TGR-MoE has 0.005.", minimum=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherEntropyOptions(_TeacherOptions):
    """Options of `teacher_entropy_loss`."""

    teacher_entropy_loss_weight: float = option(
        0.0,
        "Weight of the mean entropy of the teacher's gates; TGR-MoE has 0.005.",
        minimum=0.0,
    )


def teacher_loss(
    logits: Float[Array, "G S E"], teacher_gates: Float[Array, "G S E"]
) -> Float[Array, " G"]:
    """Mean over tokens of KL(teacher's gates, softmax of the logits), in nats.

    Args:
      logits: (G, S, E) noise-free logits of the student.
      teacher_gates: (G, S, E), which get no gradient.
    """
    teacher_gates = jax.lax.stop_gradient(teacher_gates)
    negentropy = jnp.sum(jax.scipy.special.xlogy(teacher_gates, teacher_gates), axis=-1)
    cross_entropy = -jnp.sum(teacher_gates * jax.nn.log_softmax(logits), axis=-1)
    return jnp.mean(negentropy + cross_entropy, axis=1)


@BALANCE_LOSSES.register("teacher_loss", options=TeacherOptions)
def _teacher(routing: Routing, options: TeacherOptions) -> Array | None:
    del options
    if routing.teacher_gates is None:
        return None
    return teacher_loss(routing.logits, routing.teacher_gates)


@BALANCE_LOSSES.register("teacher_importance_loss", options=TeacherImportanceOptions)
def _importance(routing: Routing, options: TeacherImportanceOptions) -> Array | None:
    if routing.teacher_gates is None:
        return None
    return importance_loss(routing.teacher_gates, options.scope)


@BALANCE_LOSSES.register("teacher_entropy_loss", options=TeacherEntropyOptions)
def _entropy(routing: Routing, options: TeacherEntropyOptions) -> Array | None:
    del options
    if routing.teacher_gates is None:
        return None
    return local_entropy_loss(routing.teacher_gates)
