"""Do all experts work without a balance loss, and is one expert with PRC then as good as two?

    python -m vmoe_prc.data.prepare cluttered_fashion_mnist --from=/usr/share/datasets/fashion-mnist
    python -m vmoe_prc.study --study=configs/studies/loss_free.py

Arguments: `seeds=N`, `steps=N`. All arms train on the same pairs of views of cluttered scenes, with
experts in every block. Balance is kept by a loss over the batch, by a bias of each expert that
follows its load (arXiv 2408.15664, `BiasBalancedRouter`), or by PRC alone.
"""

import ml_collections

from vmoe_prc.config import parse_arguments
from vmoe_prc.recipes import router_losses

STEPS = 2_000
BY_BIAS = {"model": {"encoder": {"moe": {"router": {"name": "BiasBalancedRouter"}}}}}
NO_LOSSES = {**router_losses(prc=True), "consistency": None}


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, seeds=3, steps=STEPS)
    arms = (
        ("vmoe_k1", "balance loss", 1, router_losses(prc=False)),
        ("vmoe_bias_k1", "bias", 1, NO_LOSSES | BY_BIAS),
        ("prc_k1", "no balance", 1, {}),
        ("prc_bias_k1", "bias", 1, BY_BIAS),
        ("vmoe_k2", "balance loss", 2, router_losses(prc=False)),
    )
    return ml_collections.ConfigDict(
        {
            "config": "configs/places_prc.py",
            "seeds": tuple(range(args.seeds)),
            "overrides": {"train_steps": args.steps, "evaluate": {"every_steps": args.steps}},
            "arms": tuple(
                {"name": name, "title": title, "arguments": f"k={k}", "overrides": changes}
                for name, title, k, changes in arms
            ),
            "comparisons": (
                ("prc_bias_k1", "vmoe_k2"),
                ("prc_bias_k1", "vmoe_bias_k1"),
                ("prc_bias_k1", "prc_k1"),
                ("vmoe_bias_k1", "vmoe_k1"),
                ("vmoe_k2", "vmoe_k1"),
            ),
        }
    )
