"""Fine-tunes V-MoE-S/32 with PRC on Oxford-IIIT Pets at 128 px, 10,000 steps.

    python -m vmoe_prc.main --config=configs/pets_prc.py \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

Arguments: `k=1` one expert per token, `prc=off` the baseline of PRC, `diagonal=per_position` the
diagonal of PRC's released program, `seed=N`. The recipe is from the released program
(`pcr_pet_ft`); the paper has no figure for this data set.
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import fine_tune


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, diagonal="matrix", seed=0)
    return complete(
        fine_tune(
            args,
            dataset="oxford_iiit_pet",
            splits={"train": "train[:98%]", "val": "train[98%:]", "test": "test"},
            num_classes=37,
            image_size=128,
            steps=10_000,
        )
    )
