"""Agreement of two models on experts: checkpoints of a run, before and after fine-tuning, seeds."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score

from vmoe_prc.analysis.information import first_choices
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.config import ConfigError

# Tokens of which the adjusted mutual information is computed.
MAX_TOKENS = 200_000


def stability_table(runs: Sequence[OpenedRun], split: str | None = None) -> pd.DataFrame:
    """Compares the first choices of models for the patches of the same images; dropless.

    Args:
      runs: At least two opened runs with the same data and patches.
      split: Name of a split; it is read with the configuration of each run.

    Returns:
      One row per pair of runs and block that both have: `run`, `other`, `block`; `same`, share
      of patches with the same first expert, which means something for checkpoints of one run
      only, as experts of two seeds have no common order (StableMoE, arXiv 2204.08396, calls
      1 - `same` fluctuation); `ami`, mutual information adjusted for chance (Vinh et al., JMLR
      2010), 1 for equal choices up to the names of the experts and 0 for independent ones.

    Raises:
      ConfigError: If there is only one run, or their images or patches differ.
    """
    if len(runs) < 2:
        raise ConfigError("--workdir", [run.name for run in runs], "expected at least two runs")
    split = runs[0].choose_split(split)
    choices = [first_choices(run, split) for run in runs]
    rows = []
    for (run, a), (other, b) in itertools.combinations(zip(runs, choices, strict=True), 2):
        if a.labels.shape != b.labels.shape or (a.labels != b.labels).any():
            raise ConfigError("--workdir", other.name, f"has other images than {run.name}")
        for block in (block for block in a.experts if block in b.experts):
            x, y = a.experts[block], b.experts[block]
            if x.shape != y.shape:
                raise ConfigError("--workdir", other.name, f"has other patches than {run.name}")
            kept = slice(None, None, max(1, x.size // MAX_TOKENS))
            rows.append(
                {
                    "run": run.name,
                    "other": other.name,
                    "block": block,
                    "same": float(np.mean(x == y)),
                    "ami": float(adjusted_mutual_info_score(x.ravel()[kept], y.ravel()[kept])),
                }
            )
    return pd.DataFrame(rows)
