"""Fine-tunes V-MoE-S/32 with PRC on Oxford Flowers-102 at 224 px.

    python -m vmoe_prc.main --config=configs/flowers_prc.py \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

Arguments: `k=1` one expert per token, `prc=off` the V-MoE baseline, `seed=N`. Published top-1
(doi 10.1109/OJSP.2025.3536853): PRC 91.24 (k=1) and 90.18 (k=2), V-MoE 90.21 and 89.30. The
resolution is our choice: it is not published; the rest is as for CIFAR.
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import fine_tune


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, prc=True, diagonal="matrix", seed=0)
    return complete(
        fine_tune(
            args,
            dataset="oxford_flowers102",
            splits={"train": "train", "val": "validation", "test": "test"},
            num_classes=102,
            image_size=224,
        )
    )
