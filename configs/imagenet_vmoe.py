"""V-MoE-S/32 by V-MoE's own recipe, 300 epochs of ImageNet-1K at 224 px.

    python -m vmoe_prc.main --config=configs/imagenet_vmoe.py

Arguments: `k=1` one expert per token, `others=on` tests on ImageNet-V2, ImageNet-ReaL and
ImageNet-A, too (prepared with TFDS), `seed=N`. It is `vmoe_s32_last2_ilsvrc2012_randaug_light1` of
google-research/vmoe, whose header gives top-1 (k=2, mean of 3 seeds) of 73.1 on ImageNet-1K, 76.8
on the held-out part of its training split, 74.4 on ReaL and 59.2 on V2; for fine-tuning at 384 px
see `imagenet_finetune_vmoe.py`. The baseline that PRC is compared with is
`imagenet_prc.py:prc=off`: batches of 1,024, another learning rate, no mixup.
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes.vmoe import imagenet_from_scratch


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, others=False, seed=0)
    return complete(imagenet_from_scratch(args.k, args.others, args.seed))
