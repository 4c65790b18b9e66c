"""A tiny model and batches that tests of several modules share."""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_prc.models import VisionTransformerMoe

# Not Adam: it blows up the rounding errors of gradients that are zero in truth.
OPTIMIZER = {
    "name": "sgd",
    "momentum": 0.9,
    "learning_rate": 0.1,
    "weight_decay": [("kernel", 0.1)],
    "gradient_clip": {"global_norm": 1.0},
}
RULES = [("Moe/Mlp/.*", ("expert",))]


def tiny_model(deterministic=False, dispatcher="gather", **moe):
    """32x32 images, patch 8, 2 blocks, 4 experts in block 1, groups of 2 images."""
    return VisionTransformerMoe(
        num_classes=10,
        patch_size=(8, 8),
        hidden_size=32,
        encoder={
            "num_layers": 2,
            "mlp_dim": 64,
            "num_heads": 4,
            "moe": {
                "num_experts": 4,
                "layers": (1,),
                "group_size": 34,
                "split_rngs": True,
                "dropout_rate": 0.1,
                "router": {
                    "num_selected_experts": 2,
                    "noise_std": 1.0,
                    "dispatcher": {"name": dispatcher, "capacity_factor": 1.05},
                },
                **moe,
            },
        },
        deterministic=deterministic,
    )


def one_view_batch(num_images=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = jax.nn.one_hot(rng.integers(0, 10, num_images), 10)
    return {
        "image": jnp.asarray(rng.uniform(-1, 1, (num_images, 32, 32, 3)), jnp.float32),
        "labels": labels,
    }


def two_view_batch(num_pairs=8, seed=0):
    """Views are crops of one another, so that some patches match."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 1.5, (num_pairs, 2, 2))
    shift = rng.uniform(-8, 8, (num_pairs, 2, 2))
    matrix = np.zeros((num_pairs, 2, 3, 3), np.float32)
    matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2] = (
        scale[..., 0],
        scale[..., 1],
        1,
    )
    matrix[..., :2, 2] = shift
    batch = one_view_batch(2 * num_pairs, seed)
    return {
        "image": batch["image"].reshape(num_pairs, 2, 32, 32, 3),
        "labels": batch["labels"][::2],
        "view_from_image": jnp.asarray(matrix),
    }
