"""Does PRC hold up? V-MoE and PRC, k = 1 and 2, on Fashion-MNIST.

    python -m vmoe_prc.study --study=configs/studies/fashion_mnist.py

Arguments: `seeds=N`; 3 are the fewest that tell anything, take 5 or more on an accelerator.
`part=N` trains on N% of the training images, of which the recipe takes 95, for `steps=N`.

All arms see the same number of images and crops. V-MoE comes twice: on one view of each image
as it is published, and on the pairs of views that PRC sees. PRC against the latter is the effect
of the loss alone.
"""

import ml_collections

from configs import fashion_mnist_prc as recipe
from vmoe_prc.config import parse_arguments
from vmoe_prc.recipes import router_losses


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, seeds=3, part=recipe.TRAINING_PART, steps=recipe.STEPS)
    arms = [
        arm
        for k in (1, 2)
        for arm in (
            {"name": f"vmoe_k{k}", "title": "one view", "arguments": f"k={k},prc=off"},
            {
                "name": f"vmoe_pairs_k{k}",
                "title": "two views",
                "arguments": f"k={k},prc=on",
                "overrides": router_losses(prc=False),
            },
            {"name": f"prc_k{k}", "title": "two views", "arguments": f"k={k},prc=on"},
        )
    ]
    return ml_collections.ConfigDict(
        {
            "config": "configs/fashion_mnist_prc.py",
            "seeds": tuple(range(args.seeds)),
            "overrides": {
                "fewshot": None,
                "train_steps": args.steps,
                "dataset": {"train": {"split": f"train[:{args.part}%]"}},
            },
            "arms": tuple(arms),
            "comparisons": (
                ("prc_k1", "vmoe_pairs_k1"),
                ("prc_k2", "vmoe_pairs_k2"),
                ("prc_k1", "vmoe_k1"),
                ("prc_k2", "vmoe_k2"),
                ("vmoe_pairs_k1", "vmoe_k1"),
                ("vmoe_pairs_k2", "vmoe_k2"),
                # Is one expert with PRC as good as two without?
                ("prc_k1", "vmoe_k2"),
                ("prc_k1", "vmoe_pairs_k2"),
            ),
            "robustness": {
                "split": "test",
                "examples": "test[:20%]",
                "perturbations": {"gaussian_noise": (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)},
            },
        }
    )
