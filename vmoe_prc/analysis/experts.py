"""All measures of the experts of a run."""

from collections.abc import Sequence

import pandas as pd

from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.routing_table import routing_table
from vmoe_prc.analysis.similarity import similarity_table
from vmoe_prc.analysis.specialisation import Specialisation, specialisation


def measure_specialisation(
    run: OpenedRun, split: str, blocks: Sequence[str] | None = None
) -> Specialisation:
    """Measures specialisation and similarity of the experts over a split.

    Args:
      run: The opened run.
      split: Name in `config.dataset`.
      blocks: Blocks to measure; all blocks with experts by default.

    Returns:
      The tables of `specialisation`, with all measures of similarity.

    Raises:
      ConfigError: If there is no such split or block, or the split is empty.
    """
    frames = routing_table(run, split, blocks=blocks)
    found = specialisation(frames, run.num_experts, run.config.model.num_classes)
    similarity = [similarity_table(run, split, blocks), found.similarity]
    return found._replace(similarity=pd.concat(similarity, ignore_index=True))
