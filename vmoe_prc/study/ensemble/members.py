"""The members of an ensemble: variants of the losses, each with several seeds."""

import dataclasses
from collections.abc import Mapping, Sequence

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

    def vector(self, terms: Sequence[str] = TERMS) -> jax.Array:
        """Returns the weights of `terms`, (len(terms),) float32."""
        return jnp.asarray([self.weights.get(term, 0.0) for term in terms], jnp.float32)


def used_terms(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Returns the `TERMS` that some variant has a weight for."""
    return tuple(term for term in TERMS if any(v.weights.get(term) for v in variants))


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
    routing: Routing,
    pairs: Array,
    key: jax.Array,
    terms: Sequence[str] = TERMS,
    class_pair: bool = True,
) -> jax.Array:
    """Computes losses of one MoE block.

    Args:
      routing: Routing of B pairs of adjacent views, with noise.
      pairs: (B, X, 2) matched tokens.
      key: Random key of the random pairs.
      terms: Names of the losses; no other is computed.
      class_pair: Whether the last pair of each image is its class tokens.

    Returns:
      (len(terms),) float32.
    """
    num_experts = routing.gates.shape[-1]
    gates = routing.gates.reshape(len(pairs), 2, -1, num_experts)
    assert routing.noisy_logits is not None  # routers of an ensemble are trained with noise
    of_groups = (routing.gates, routing.logits, routing.noisy_logits)
    of_batch = tuple(x.reshape(1, -1, num_experts) for x in of_groups)

    def importance(gates: Array, logits: Array, noisy: Array) -> Array:
        return jnp.mean(balance.importance_loss(gates))

    def load(gates: Array, logits: Array, noisy: Array) -> Array:
        k = routing.num_selected_experts
        return jnp.mean(balance.load_loss(logits, noisy, routing.noise_scale, k))

    def place(**weights: float) -> Array:
        off = {"off_diagonal_weight": 0.0, "diagonal_weight": 0.0}
        return place_prc_loss(gates, pairs, **off | weights)

    def prc_of_random_pairs() -> Array:
        return prc_loss(gates, shuffle_partners(key, pairs, class_pair=class_pair))[0]

    losses = {
        "balance_by_group": lambda: importance(*of_groups) + load(*of_groups),
        "balance_by_batch": lambda: importance(*of_batch) + load(*of_batch),
        "load_by_batch": lambda: load(*of_batch),
        "prc": lambda: prc_loss(gates, pairs)[0],
        "prc_random_pairs": prc_of_random_pairs,
        "place_diagonal": lambda: place(diagonal_weight=1.0),
        "place_off_diagonal": lambda: place(off_diagonal_weight=1.0),
        "iic": lambda: iic_loss(gates, pairs, weight=1.0, within_images=False),
        "iic_within": lambda: iic_loss(gates, pairs, weight=1.0),
    }
    return jnp.asarray([losses[term]() for term in terms])
