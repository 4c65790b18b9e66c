"""Specialisation of experts: load, classes, entropy of the gates, co-activation.

Counted from the parts of a routing table, see `routing_table`: only one batch is in memory.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from vmoe_prc.arrays import Float

ENTROPY_BINS = 30


class Specialisation(NamedTuple):
    """Tidy tables. Tokens of both views count, and the class token.

    Attributes:
      blocks: One row per block: `entropy`, mean entropy of the gates in nats, at most
        `max_entropy` = ln E; `dropped`, share of choices whose expert was full;
        `class_information`, mutual information of a token's first expert and the class of its
        image in nats, 0 if they are independent, over the images with labels (NaN without any).
      experts: One row per block and expert: `load`, share of the kept choices; `first`, share
        of first choices; `gate`, mean gate of its choices.
      classes: One row per block, expert and class: `share`, fraction of the class's tokens
        whose first choice is this expert.
      entropy: One row per block and bin: `low` and `high` in nats, `share` of tokens.
      similarity: One row per block and pair of experts, with `measure` = `selection`: `value`,
        P(processed by `other` | processed by `expert`) (OLMoE, arXiv 2409.02060, calls it
        co-activation). `similarity_table` has further measures.
    """

    blocks: pd.DataFrame
    experts: pd.DataFrame
    classes: pd.DataFrame
    entropy: pd.DataFrame
    similarity: pd.DataFrame

    def of_block(self, block: str) -> "Specialisation":
        """Returns the rows of one block."""
        return Specialisation._make(table[table["block"] == block] for table in self)


def specialisation(
    frames: Iterable[pd.DataFrame], num_experts: int, num_classes: int
) -> Specialisation:
    """Computes the tables from a routing table.

    Args:
      frames: Parts of a routing table, each with all rows of its tokens.
      num_experts: E.
      num_classes: Number of classes.

    Raises:
      ValueError: If there are no rows.
    """
    counts: dict[str, _Counts] = {}
    for frame in frames:
        for block, part in frame.groupby("block", observed=True, sort=False):
            found = _count(part, num_experts, num_classes)
            name = str(block)
            counts[name] = counts[name].plus(found) if name in counts else found
    if not counts:
        raise ValueError("the routing table has no rows")
    parts = [_tables(block, count) for block, count in counts.items()]
    return Specialisation(*(pd.concat(x, ignore_index=True) for x in zip(*parts, strict=True)))


class _Counts(NamedTuple):
    """Sums over the tokens of one block."""

    choices: int
    chosen: Float[np.ndarray, " E"]  # choices of each expert
    kept: Float[np.ndarray, " E"]  # choices of each expert that were kept
    gates: Float[np.ndarray, " E"]  # sum of their gates
    first: Float[np.ndarray, " E"]  # first choices
    of_classes: Float[np.ndarray, "L E"]  # first choices of images with labels, by class
    together: Float[np.ndarray, "E E"]  # tokens that both experts processed
    entropy: float
    histogram: Float[np.ndarray, " bins"]

    def plus(self, other: "_Counts") -> "_Counts":
        sums = [x + y for x, y in zip(self, other, strict=True)]
        return cast("_Counts", _Counts._make(sums))


def _count(part: pd.DataFrame, num_experts: int, num_classes: int) -> _Counts:
    k = int(part["rank"].max())
    experts, kept, gates = (
        part[name].to_numpy().reshape(-1, k) for name in ("expert", "kept", "gate")
    )
    label, entropy = (part[name].to_numpy()[::k] for name in ("label", "entropy"))
    processed = np.zeros((len(experts), num_experts))
    np.put_along_axis(processed, experts.astype(np.int64), kept.astype(np.float64), axis=1)

    def per_expert(weights=None):
        return np.bincount(experts.ravel(), weights, num_experts).astype(np.float64)

    labelled = label >= 0
    cells = label[labelled].astype(np.int64) * num_experts + experts[labelled, 0]
    top = np.log(num_experts)
    return _Counts(
        choices=experts.size,
        chosen=per_expert(),
        kept=per_expert(kept.ravel()),
        gates=per_expert(gates.ravel()),
        first=np.bincount(experts[:, 0], minlength=num_experts).astype(np.float64),
        of_classes=np.bincount(cells, minlength=num_classes * num_experts)
        .reshape(num_classes, num_experts)
        .astype(np.float64),
        together=processed.T @ processed,
        entropy=float(entropy.sum(dtype=np.float64)),
        histogram=np.histogram(np.clip(entropy, 0, top), ENTROPY_BINS, (0, top))[0].astype(
            np.float64
        ),
    )


def _tables(block: str, counts: _Counts) -> Specialisation:
    num_experts = len(counts.first)
    tokens = counts.first.sum()
    experts = np.arange(num_experts)
    edges = np.linspace(0, np.log(num_experts), ENTROPY_BINS + 1)
    return Specialisation(
        blocks=pd.DataFrame(
            {
                "block": [block],
                "entropy": counts.entropy / tokens,
                "max_entropy": np.log(num_experts),
                "dropped": 1 - counts.kept.sum() / counts.choices,
                "class_information": _mutual_information(counts.of_classes),
            }
        ),
        experts=pd.DataFrame(
            {
                "block": block,
                "expert": experts,
                "load": _shares(counts.kept, counts.kept.sum()),
                "first": counts.first / tokens,
                "gate": _shares(counts.gates, counts.chosen),
            }
        ),
        classes=pair_rows(
            block,
            _shares(counts.of_classes, counts.of_classes.sum(axis=1, keepdims=True)).T,
            ("expert", "label", "share"),
        ),
        entropy=pd.DataFrame(
            {
                "block": block,
                "low": edges[:-1],
                "high": edges[1:],
                "share": counts.histogram / tokens,
            }
        ),
        similarity=pair_rows(
            block,
            _shares(counts.together, np.diag(counts.together)[:, None]),
            ("expert", "other", "value"),
        ).assign(measure="selection"),
    )


def pair_rows(
    block: str, values: Float[np.ndarray, "A B"], names: tuple[str, str, str]
) -> pd.DataFrame:
    """Makes one row per entry of a matrix: `block`, and its indices and value as `names`."""
    a, b = np.indices(values.shape)
    columns = dict(zip(names, (a.ravel(), b.ravel(), values.ravel()), strict=True))
    return pd.DataFrame({"block": block, **columns})


def _shares(part, whole) -> np.ndarray:
    """Returns quotients, NaN where the denominator is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _mutual_information(counts: Float[np.ndarray, "A B"]) -> float:
    if not counts.any():
        return np.nan
    p = counts / counts.sum()
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    positive = p > 0
    return float(np.sum(p[positive] * np.log(p[positive] / independent[positive])))
