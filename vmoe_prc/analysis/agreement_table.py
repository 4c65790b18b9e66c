"""Agreement of the two views of a split, as a table."""

from collections.abc import Sequence

import jax
import pandas as pd

from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.evaluation.agreement import ALL_BLOCKS, agreement_intervals
from vmoe_prc.evaluation.splits import sum_batches
from vmoe_prc.evaluation.step import make_eval_step
from vmoe_prc.runtime.mesh import replicated


def agreement_table(
    run: OpenedRun, split: str, blocks: Sequence[str] | None = None
) -> pd.DataFrame:
    """Measures the agreement with the step that evaluates in training.

    Args:
      run: The opened run.
      split: Name of a split with two views.
      blocks: Blocks to measure; all that have experts by default.

    Returns:
      A row a block and metric, and for all of these blocks together: `block`, `metric`,
      `value`, `low` and `high`, shares in [0, 1] with a 95% interval over images.

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
