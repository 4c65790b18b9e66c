"""Agreement of the two views of a split, in parts, as a table and as bars."""

from collections.abc import Sequence

import jax
import pandas as pd

from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.evaluation.agreement import ALL_BLOCKS, PARTS, SETS, agreement_intervals
from vmoe_prc.evaluation.splits import sum_batches
from vmoe_prc.evaluation.step import make_eval_step
from vmoe_prc.figures.agreement_bars import AgreementBar
from vmoe_prc.runtime.mesh import replicated


def agreement_table(
    run: OpenedRun, split: str, blocks: Sequence[str] | None = None
) -> pd.DataFrame:
    """Measures the agreement with the step that evaluates in training.

    Args:
      run: The opened run.
      split: Name of a split with two views.
      blocks: Blocks to measure; all blocks with experts by default.

    Returns:
      One row per block and metric, and for all of these blocks together: `block`, `metric`
      (see `evaluation.agreement`), `value`, `low` and `high`: shares in [0, 1] with a 95%
      interval over images.

    Raises:
      ConfigError: If there is no such split or block, or the split has one view.
    """
    split, blocks = run.choose_split(split, two_views=True), run.choose_blocks(blocks)
    step = make_eval_step(run.model, run.config.loss.to_dict())
    with jax.set_mesh(run.mesh):
        _, pair_sums = sum_batches(
            jax.jit(step, out_shardings=replicated(run.mesh)), run.params, run.batches(split)
        )
    intervals = agreement_intervals({block: pair_sums[block] for block in blocks})
    rows = [
        {"block": block, "metric": metric, **interval._asdict()}
        for block in (*blocks, ALL_BLOCKS)
        for metric, interval in intervals[block].items()
    ]
    return pd.DataFrame(rows)


def agreement_bars(table: pd.DataFrame) -> list[AgreementBar]:
    """Makes the bars of a table: first choices of each block, and sets of K where K > 1."""
    bars = []
    for block in table["block"].unique():
        part = table[table["block"] == block].set_index("metric")
        for prefix, choices in (("", "first choices"), (SETS, "sets of K")):
            if prefix + PARTS[0] not in part.index:
                continue
            values = {name: float(part.loc[prefix + name, "value"]) for name in PARTS}
            low, high = part.loc[f"{prefix}kappa_place", ["low", "high"]]
            name = "all blocks" if block == ALL_BLOCKS else block
            interval = (float(low), float(high))
            bars.append(AgreementBar(f"{name}, {choices}", kappa_place_interval=interval, **values))
    return bars
