"""Uses everything of this folder: `--config=examples/stripes_config.py`."""

from vmoe_prc.config import complete
from vmoe_prc.recipes import adam, finish, small_model

CLASSES, SIZE, PATCH_SIZE, EXPERTS = 3, 32, 8, 4
TWO_VIEWS = f"decode|darken(0.7)|two_views({SIZE}, (60, 100), (60, 100))|{finish(CLASSES, True)}"


def get_config(arguments: str = ""):
    """Returns the configuration; it takes no arguments."""
    model = small_model(CLASSES, SIZE, PATCH_SIZE, experts=EXPERTS, k=2, layers=(1,))
    router = model["encoder"]["moe"]["router"]
    router |= {"name": "ThresholdRouter", "threshold": 0.2}
    return complete(
        {
            # Files next to this one; names of installed modules work, too.
            "imports": (
                "threshold_router",
                "cosine_loss",
                "darken_op",
                "stripes_dataset",
                "confidence_evaluator",
            ),
            "train_steps": 200,
            "dataset": {
                "train": {
                    "name": "stripes",
                    "split": "train",
                    "process": TWO_VIEWS,
                    "batch_size": 16,
                    "shuffle_buffer": 96,
                },
                "test": {
                    "name": "stripes",
                    "split": "test",
                    "process": f"decode|{finish(CLASSES)}",
                    "batch_size": 24,
                },
            },
            "model": model,
            "loss": {"name": "softmax_xent"},
            "consistency": {"name": "cosine", "weight": 0.01},
            "optimizer": adam(
                "warmup_cosine_decay", peak_value=3e-3, end_value=1e-5, warmup_steps=20
            ),
            "evaluate": {"every_steps": 100},
            "evaluators": {"sure": {"name": "confidence", "every_steps": 100, "split": "test"}},
            "save_checkpoint": {"every_steps": 100},
            "report_progress": {"every_steps": 25},
        }
    )
