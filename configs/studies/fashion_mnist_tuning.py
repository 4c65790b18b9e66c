"""Chooses learning rate, crops and weights on held-out training data of Fashion-MNIST.

    python -m vmoe_prc.study --study=configs/studies/fashion_mnist_tuning.py

Both methods get the same number of short runs, and neither sees the test data.
"""

import ml_collections

from configs import fashion_mnist_prc as recipe
from vmoe_prc.recipes import router_losses

STEPS = 1_000
LEARNING_RATE = 4e-3


def arm(prc: bool, name: str, title: str, *, rate=LEARNING_RATE, crop=None, weight=1):
    """One setting; `weight` multiplies both weights of PRC, `crop` is the smallest area."""
    overrides = {"optimizer": {"learning_rate": {"peak_value": rate}}}
    if prc:
        weights = router_losses(prc=True)["consistency"]
        names = ("diagonal_weight", "off_diagonal_weight")
        overrides["consistency"] = {name: weight * weights[name] for name in names}
    if crop:
        process = recipe.two_views(crop) if prc else recipe.one_view(crop)
        overrides["dataset"] = {"train": {"process": process}}
    method = "prc" if prc else "vmoe"
    return {
        "name": f"{method}_{name}",
        "title": title,
        "arguments": f"k=2,prc={'on' if prc else 'off'}",
        "overrides": overrides,
    }


def get_config(arguments: str = ""):
    base = recipe.get_config().to_dict()
    val_pairs = base["dataset"]["test_pairs"] | {"split": base["dataset"]["val"]["split"]}
    return ml_collections.ConfigDict(
        {
            "config": "configs/fashion_mnist_prc.py",
            "seeds": (0,),
            "split": "val",
            "overrides": {
                "train_steps": STEPS,
                "optimizer": {"learning_rate": {"warmup_steps": STEPS // 10}},
                "dataset": {"test": None, "test_pairs": None, "val_pairs": val_pairs},
                "fewshot": None,
            },
            "arms": (
                arm(False, "rate4", "rate 4e-3"),
                arm(True, "weight1", "rate 4e-3, weight 1"),
                arm(False, "rate2", "rate 2e-3", rate=2e-3),
                arm(True, "weight4", "rate 4e-3, weight 4", weight=4),
                arm(False, "rate8", "rate 8e-3", rate=8e-3),
                arm(True, "weight16", "rate 4e-3, weight 16", weight=16),
                arm(False, "crop40", "rate 4e-3, crops from 40%", crop=40),
                arm(True, "crop40", "rate 4e-3, crops from 40%", crop=40),
            ),
        }
    )
