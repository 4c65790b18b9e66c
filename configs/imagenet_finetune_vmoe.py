"""Fine-tunes V-MoE on ImageNet-1K at 384 px by V-MoE's own recipe, 10,000 steps.

    python -m vmoe_prc.main --config=configs/imagenet_finetune_vmoe.py \
        --config.initialization.prefix=CHECKPOINT

Arguments: `model=s32|b16`, `k=1` one expert per token, `others=on` tests on ImageNet-V2,
ImageNet-ReaL and ImageNet-A, too, `seed=N`. It is `..._ft_ilsvrc2012` of google-research/vmoe.
Top-1 (k=2, mean of 3 fine-tuning seeds) that their headers give:

* s32, from `vmoe_s32_last2_ilsvrc2012_randaug_light1` (`imagenet_vmoe.py`): 75.9 on ImageNet-1K,
  78.8 on the held-out part of its training split, 77.1 on ReaL, 62.0 on V2;
* b16, from `vmoe_b16_imagenet21k_randaug_strong` (`imagenet21k_vmoe.py`): 85.6, 89.2, 84.1, 76.1.
"""

from vmoe_prc.config import ConfigError, complete, nearest, parse_arguments
from vmoe_prc.recipes.vmoe import imagenet_fine_tuning

BACKBONES = {"s32": "ViT-S/32, E=8, K={k}, Last 2", "b16": "ViT-B/16, E=8, K={k}, Every 2"}


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, model="s32", k=2, others=False, seed=0)
    if args.model not in BACKBONES:
        allowed = f"expected one of {', '.join(BACKBONES)}"
        raise ConfigError(
            "config argument 'model'", args.model, allowed, nearest(args.model, BACKBONES)
        )
    backbone = BACKBONES[args.model].format(k=args.k)
    return complete(imagenet_fine_tuning(backbone, args.k, args.others, args.seed))
