"""What of PRC does it? One change at a time, on Fashion-MNIST with k = 2.

    python -m vmoe_prc.study --study=configs/studies/fashion_mnist_ablations.py

Arguments: `seeds=N`, `steps=N`. All arms but three train on 32 pairs of views a step: one on 64
single views, which are as many crops of twice as many images, and two on 64 pairs. L2 and JSD
pull matched patches together and do not keep the experts in use: they come with V-MoE's balance
losses.
"""

import ml_collections

from configs import fashion_mnist_prc as recipe
from vmoe_prc.config import parse_arguments
from vmoe_prc.recipes import router_losses

PRC = recipe.get_config("prc=on").consistency
VMOE = router_losses(prc=False)
BALANCE = {"auxiliary_loss": VMOE["auxiliary_loss"]}


def arm(name: str, title: str, changes=None, **overrides):
    """An arm that differs from PRC by fields of `consistency`, and by other sections."""
    sections = {"consistency": changes} if changes else {}
    return {"name": name, "title": title, "overrides": sections | overrides}


def weights(diagonal: float, off_diagonal: float):
    """PRC's weights, multiplied."""
    return {
        "diagonal_weight": diagonal * PRC.diagonal_weight,
        "off_diagonal_weight": off_diagonal * PRC.off_diagonal_weight,
    }


def train(**fields):
    """Changes of the training data."""
    return {"dataset": {"train": fields}}


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, seeds=3, steps=recipe.STEPS)
    # As many source images a step as on single views.
    one_view = train(process=recipe.one_view(), batch_size=recipe.IMAGES_PER_STEP)
    more_pairs = train(batch_size=recipe.IMAGES_PER_STEP)
    first, last = recipe.get_config().model.encoder.moe.layers
    arms = (
        arm("prc", ""),
        arm("none", "two views", **VMOE),
        arm("one_view", "one view", **VMOE, **one_view),
        arm("none_64", "64 pairs a step", **VMOE, **more_pairs),
        arm("prc_64", "64 pairs a step", **more_pairs),
        arm("random_pairs", "random pairs", {"pairs": "random"}),
        arm("per_position", "diagonal per position", {"diagonal": "per_position"}),
        arm("diagonal", "diagonal alone", weights(1, 0)),
        arm("off_diagonal", "off-diagonal alone", weights(0, 1)),
        arm("weight_quarter", "weights / 4", weights(0.25, 0.25)),
        arm("weight_4", "weights x 4", weights(4, 4)),
        arm("weight_16", "weights x 16", weights(16, 16)),
        arm("l2", "weight 0.05, balance losses", {"name": "l2", "weight": 0.05}, **BALANCE),
        arm("jsd", "weight 0.05, balance losses", {"name": "jsd", "weight": 0.05}, **BALANCE),
        arm("balance", "balance losses added", **BALANCE),
        arm("target_view0", "no gradient in view 0", {"stop_gradient": "view0"}),
        arm("target_view1", "no gradient in view 1", {"stop_gradient": "view1"}),
        arm("no_class_pair", "class tokens not paired", {"pair_class_tokens": False}),
        arm("first_block", f"block {first} alone", {"blocks": (first,)}),
        arm("last_block", f"block {last} alone", {"blocks": (last,)}),
        arm("crops_20", "crops from 20%", **train(process=recipe.two_views(20))),
        arm("crops_95", "crops from 95%", **train(process=recipe.two_views(95))),
    )
    return ml_collections.ConfigDict(
        {
            "config": "configs/fashion_mnist_prc.py",
            "seeds": tuple(range(args.seeds)),
            "overrides": {"fewshot": None, "train_steps": args.steps},
            "arms": arms,
            "comparisons": (
                *((other["name"], "prc") for other in arms[1:]),
                ("none_64", "one_view"),
                ("prc_64", "none_64"),
            ),
        }
    )
