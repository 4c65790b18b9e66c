"""Small models of every kind on scikit-learn's handwritten digits: a minute or two on 2 cores.

    python -m vmoe_prc.main --config=configs/digits_models.py:model=soft

Arguments: `model=NAME`, one of

* `dense`: a vision transformer without experts;
* `topk`: V-MoE;
* `expert_choice`, `soft`: experts that choose tokens, and Soft MoE, as in its paper;
* `ensemble`: two members of two experts each (E³);
* `sinkhorn`, `sinkhorn_items`, `sparse_transport`, `sparse_transport_items`, `transport_items`:
  routers by optimal transport (arXiv 2209.15466);
* `adversarial`: V-MoE, trained on attacked images (arXiv 2210.10253);

and `seed=N`. The 8x8 images are enlarged to 32x32; a patch of 4x4 is one of their pixels.
"""

import functools

from vmoe_prc.config import ConfigError, complete, nearest, parse_arguments
from vmoe_prc.recipes import EVALUATION_CAPACITY, adam, finish, router_losses, small_model

IMAGES_PER_STEP = 64
IMAGE_SIZE, PATCH_SIZE = 32, 4
TRAIN = f"decode|inception_crop({IMAGE_SIZE}, 60, 100)|{finish(10)}"
CENTRE = f"decode|resize(34)|central_crop({IMAGE_SIZE})|{finish(10)}"
TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
WITHIN_IMAGES = {"group_size": TOKENS}
GATHER = {"name": "gather", "capacity_factor": 1.5}
# What each model has in `encoder.moe` in place of V-MoE's fields.
MOE = {
    "dense": {"layers": ()},
    "topk": {},
    "adversarial": {},
    "expert_choice": {
        **WITHIN_IMAGES,
        "router": {
            "name": "NoisyTopItemsPerExpertRouter",
            "dispatcher": {**GATHER, "capacity_ceil_or_round": "round", "capacity_multiple_of": 1},
        },
    },
    "soft": {**WITHIN_IMAGES, "router": {"name": "SoftRouter"}},
    "ensemble": {"ensemble_size": 2, "router": {"num_selected_experts": 1, "dispatcher": GATHER}},
    **{
        name: {"router": {"name": router, "dispatcher": GATHER}}
        for name, router in (
            ("sinkhorn", "KLProjectionNoisyTopExpertsPerItemRouter"),
            ("sinkhorn_items", "KLProjectionNoisyTopItemsPerExpertRouter"),
            ("transport_items", "SparseProjectionTransportTopItemsPerExpertRouter"),
            ("sparse_transport", "KSparseProjectionTransportTopExpertsPerItemRouter"),
            ("sparse_transport_items", "KSparseProjectionTransportTopItemsPerExpertRouter"),
        )
    },
}


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, model="topk", seed=0)
    if args.model not in MOE:
        allowed = f"expected one of {', '.join(MOE)}"
        raise ConfigError("config argument 'model'", args.model, allowed, nearest(args.model, MOE))
    model = small_model(10, IMAGE_SIZE, PATCH_SIZE, experts=4, k=2, layers=(1, 3))
    model["encoder"]["moe"] |= MOE[args.model]
    digits = functools.partial(dict, name="digits", cache="loaded", batch_size=IMAGES_PER_STEP)
    # Members, and experts that choose tokens, keep the capacity of training.
    own = args.model.endswith("_items") or args.model in ("dense", "soft", "expert_choice")
    calibration = {"name": "calibration", "every_steps": 300, "split": "test"}
    return complete(
        {
            "description": f"digits, {args.model}",
            "seed": args.seed,
            "train_steps": 300,
            "dataset": {
                "train": digits(split="train", process=TRAIN),
                "test": digits(split="test", process=CENTRE),
            },
            "model": model,
            "loss": {"name": "softmax_xent"},
            **router_losses(prc=False),
            "adversarial": (
                # A level of bytes, as in V-MoE's attacks; with 0.05 the model does not learn.
                {"max_epsilon": 0.0078431, "num_updates": 2}
                if args.model == "adversarial"
                else None
            ),
            "optimizer": adam(
                "warmup_cosine_decay", peak_value=4e-3, end_value=1e-5, warmup_steps=50
            ),
            "evaluate": {
                "every_steps": 300,
                "model_overrides": {} if own else EVALUATION_CAPACITY,
            },
            "evaluators": {"calibration": calibration},
            "save_checkpoint": {"every_steps": 300},
            "report_progress": {"every_steps": 25},
        }
    )
