"""V-MoE and PRC on scikit-learn's digits: six runs, about 12 minutes on 2 cores.

    python -m vmoe_prc.study --study=configs/studies/digits.py

Arguments: `k=1` one expert a token, `seeds=N`.
"""

import ml_collections

from vmoe_prc.config import parse_arguments


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, seeds=3)
    return ml_collections.ConfigDict(
        {
            "config": "configs/digits_prc.py",
            "seeds": tuple(range(args.seeds)),
            "arms": (
                {"name": "vmoe", "arguments": f"k={args.k},prc=off"},
                {"name": "prc", "arguments": f"k={args.k},prc=on"},
            ),
            "comparisons": (("prc", "vmoe"),),
        }
    )
