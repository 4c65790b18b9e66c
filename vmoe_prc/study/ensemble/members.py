"""The members of an ensemble: variants of the losses, each with several seeds."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from vmoe_prc.alignment import shuffle_partners
from vmoe_prc.arrays import Array
from vmoe_prc.losses import balance
from vmoe_prc.losses.consistency import prc_loss
from vmoe_prc.losses.consistency.place import iic_loss, place_prc_loss
from vmoe_prc.models import Routing

# Losses on the routers, of weight 1 each; a variant is a choice of weights.
TERMS = (
    "balance_by_group",
    "balance_by_batch",
    "load_by_batch",
    "prc",
    "prc_random_pairs",
    "place_diagonal",
    "place_off_diagonal",
    "iic",
    "iic_within",
)
BALANCE_WEIGHT = 5e-3
PLACE_OFF_DIAGONAL_WEIGHT = 0.05


@dataclasses.dataclass(frozen=True)
class Variant:
    """Losses of one variant of a study.

    Attributes:
      name: Name in tables.
      weights: Weights of some `TERMS`; the others are 0.
      photometric: Whether contrast and noise are drawn for each view.
    """

    name: str
    weights: Mapping[str, float]
    photometric: bool = False

    def __post_init__(self):
        unknown = set(self.weights) - set(TERMS)
        if unknown:
            raise ValueError(f"unknown terms {sorted(unknown)}; allowed: {', '.join(TERMS)}")

    def vector(self) -> jax.Array:
        """Returns the weights in the order of `TERMS`, (len(TERMS),) float32."""
        return jnp.asarray([self.weights.get(term, 0.0) for term in TERMS], jnp.float32)


def vmoe_by_group() -> Variant:
    """V-MoE with the balance losses of each routing group, as published."""
    return Variant("V-MoE", {"balance_by_group": BALANCE_WEIGHT})


def vmoe_by_batch() -> Variant:
    """V-MoE with balance losses over the whole batch."""
    return Variant("V-MoE, batch balance", {"balance_by_batch": BALANCE_WEIGHT})


def prc() -> Variant:
    """PRC as published, without balance losses."""
    return Variant("PRC", {"prc": 1.0})


def prc_balanced() -> Variant:
    """PRC with the load loss over the whole batch."""
    return Variant("PRC, balanced", {"prc": 1.0, "load_by_batch": BALANCE_WEIGHT})


def prc_random_pairs() -> Variant:
    """PRC, balanced, whose matched patches are paired at random within their image."""
    return Variant("PRC, random pairs", {"prc_random_pairs": 1.0, "load_by_batch": BALANCE_WEIGHT})


def place_prc(weight: float) -> Variant:
    """Place-PRC with the balance losses over the whole batch."""
    return Variant(
        f"place-PRC {weight:g}",
        {
            "place_diagonal": weight,
            "place_off_diagonal": PLACE_OFF_DIAGONAL_WEIGHT,
            "balance_by_batch": BALANCE_WEIGHT,
        },
    )


def iic_within(weight: float) -> Variant:
    """IIC within images with the balance losses over the whole batch."""
    return Variant(
        f"IIC within {weight:g}", {"iic_within": weight, "balance_by_batch": BALANCE_WEIGHT}
    )


def router_terms(
    routing: Routing, pairs: Array, key: jax.Array, class_pair: bool = True
) -> jax.Array:
    """Computes the losses of one MoE block.

    Args:
      routing: Routing of B pairs of adjacent views, with noise.
      pairs: (B, X, 2) matched tokens.
      key: Random key of the random pairs.
      class_pair: Whether the last pair of each image is that of the class tokens.

    Returns:
      (len(TERMS),) float32, in the order of `TERMS`.
    """
    num_experts = routing.gates.shape[-1]
    gates = routing.gates.reshape(len(pairs), 2, -1, num_experts)
    random_pairs = shuffle_partners(key, pairs, class_pair=class_pair)

    assert routing.noisy_logits is not None  # routers of an ensemble are trained with noise
    of_groups = (routing.gates, routing.logits, routing.noisy_logits)

    def balance_losses(gates: Array, logits: Array, noisy: Array) -> tuple[jax.Array, jax.Array]:
        importance = balance.importance_loss(gates)
        load = balance.load_loss(logits, noisy, routing.noise_scale, routing.num_selected_experts)
        return jnp.mean(importance), jnp.mean(load)

    of_batch = [x.reshape(1, -1, num_experts) for x in of_groups]
    by_group, by_batch = balance_losses(*of_groups), balance_losses(*of_batch)
    place = {"off_diagonal_weight": 0.0, "diagonal_weight": 0.0}
    values = {
        "balance_by_group": sum(by_group),
        "balance_by_batch": sum(by_batch),
        "load_by_batch": by_batch[1],
        "prc": prc_loss(gates, pairs)[0],
        "prc_random_pairs": prc_loss(gates, random_pairs)[0],
        "place_diagonal": place_prc_loss(gates, pairs, **place | {"diagonal_weight": 1.0}),
        "place_off_diagonal": place_prc_loss(gates, pairs, **place | {"off_diagonal_weight": 1.0}),
        "iic": iic_loss(gates, pairs, weight=1.0, within_images=False),
        "iic_within": iic_loss(gates, pairs, weight=1.0),
    }
    return jnp.stack([values[term] for term in TERMS])
