"""Fine-tunes V-MoE-S/32 with PRC on ImageNet-1K at 384 px, 5,000 steps.

    python -m vmoe_prc.main --config=configs/imagenet_finetune_prc.py \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

Arguments: `k=1` one expert per token, `prc=off` the baseline of PRC, or with `baseline=vmoe`
V-MoE's own recipe (`imagenet_finetune_vmoe.py`); `diagonal=per_position` the diagonal of PRC's
released program, `others=on` tests on ImageNet-V2, ImageNet-ReaL and ImageNet-A, too, `seed=N`. The
paper's figures for ImageNet-1K very probably
belong here, see `imagenet_prc.py`: top-1 of 75.92 (k=1) and 76.27 (k=2) with PRC, 75.23 and 75.84
without; V-MoE's released config gives 75.9 (k=2).
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import FINE_TUNE_IMAGES_PER_STEP, fine_tune, is_vmoes
from vmoe_prc.recipes.vmoe import OTHER_TESTS, imagenet_fine_tuning, imagenet_tests


def get_config(arguments: str = ""):
    args = parse_arguments(
        arguments, k=2, prc=True, baseline="matched", diagonal="matrix", others=False, seed=0
    )
    if is_vmoes(args):
        backbone = f"ViT-S/32, E=8, K={args.k}, Last 2"
        return complete(imagenet_fine_tuning(backbone, args.k, args.others, args.seed))
    config = fine_tune(
        args,
        dataset="imagenet2012",
        splits={"train": "train[:99%]", "val": "train[99%:]", "test": "validation"},
        num_classes=1000,
        image_size=384,
        peak_value=4.5e-3,
        end_value=1.5e-5,
        pair_class_tokens=True,
    )
    tests = imagenet_tests(
        "decode|resize(384, truncate=True)", FINE_TUNE_IMAGES_PER_STEP, args.others
    )
    config["dataset"] |= {name: tests[name] for name in OTHER_TESTS.keys() & tests.keys()}
    return complete(config)
