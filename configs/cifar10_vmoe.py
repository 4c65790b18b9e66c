"""Fine-tunes V-MoE-B/16 on CIFAR-10 at 128 px by V-MoE's own recipe, 1,000 steps.

    python -m vmoe_prc.main --config=configs/cifar10_vmoe.py \
        --config.initialization.prefix=CHECKPOINT

Arguments: `k=1` one expert per token, `seed=N`. It is
`vmoe_b16_imagenet21k_randaug_strong_ft_cifar10` of google-research/vmoe, whose header gives a
top-1 of 98.7 (k=2, mean of 3 fine-tuning seeds).
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes import vmoe_model
from vmoe_prc.recipes.vmoe import cifar_fine_tuning


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, k=2, seed=0)
    description = f"ViT-B/16, E=8, K={args.k}, Every 2, 300 Epochs"
    model = vmoe_model(description, image_size=128, num_classes=10)
    options = {"k": args.k, "peak_value": 1.5e-3, "warmup_steps": 100}
    config = cifar_fine_tuning(model, "cifar10", 10, 1_000, args.seed, **options)
    return complete({"description": description, **config})
