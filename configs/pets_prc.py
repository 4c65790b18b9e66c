"""Fine-tunes V-MoE-S/32 with PRC on Oxford-IIIT Pets at 224 px.

    python -m vmoe_prc.main --config=configs/pets_prc.py \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

Arguments: `k=1` one expert a token, `prc=off` the V-MoE baseline, `seed=N`. Nothing is
published for this data set; the recipe is that of CIFAR at another resolution.
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import fine_tune


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, seed=0)
    return complete(
        fine_tune(
            args,
            dataset="oxford_iiit_pet",
            splits={"train": "train[:90%]", "val": "train[90%:]", "test": "test"},
            num_classes=37,
            image_size=224,
        )
    )
