"""Fine-tunes an efficient ensemble of experts (E³, arXiv 2110.03360) on CIFAR-100 at 128 px.

    python -m vmoe_prc.main --config=configs/cifar100_eee.py \
        --config.initialization.prefix=CHECKPOINT

Arguments: `seed=N`. Two members of four experts each, K=1, from `eee_s32_last2_ilsvrc2012` or any
V-MoE-S/32 of 8 experts. It is `eee_s32_last2_ilsvrc2012_ft_cifar100` of google-research/vmoe, whose
header gives a top-1 of 81.31 (mean of 3 fine-tuning seeds). `test/loss` is the negative
log-likelihood of the ensemble, `calibration/ece` its expected calibration error.
"""

from vmoe_prc.config import complete, parse_arguments
from vmoe_prc.recipes.vmoe import ensemble_on_cifar100


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, seed=0)
    config = ensemble_on_cifar100(args.seed)
    calibration = {"name": "calibration", "every_steps": 100, "split": "test"}
    return complete({**config, "evaluators": {"calibration": calibration}})
