"""Floating-point operations of a model, independent of the program that computes them."""

from vmoe_prc.config import Config
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models.routing import DEFAULT_ROUTER


def forward_flops_per_image(model: Config, image_size: tuple[int, int]) -> int:
    """Counts 2 operations per multiply-add of the matrix products of a forward pass.

    A token counts the experts that it chooses on average, whether or not capacity lets it keep
    them, and nothing for moving it there: dispatch is overhead, not work. Soft MoE counts its
    slots, and nothing for mixing them. A teacher is not counted. A training step costs three times
    as much.

    Args:
      model: The `model` part of a config.
      image_size: (height, width) in pixels.
    """
    routed, others = _multiply_adds(model, image_size)
    return 2 * (routed + others)


def routed_share(model: Config, image_size: tuple[int, int]) -> float:
    """Share of `forward_flops_per_image` that the experts compute.

    It bounds what routing can decide: the rest of the model is the same for every choice of
    experts (arXiv 2605.15484, from its abstract, finds that gains need a large share).
    """
    routed, others = _multiply_adds(model, image_size)
    return routed / (routed + others)


def _multiply_adds(model: Config, image_size: tuple[int, int]) -> tuple[int, int]:
    """Counts multiply-adds of the experts of an image, and of everything else."""
    encoder = model["encoder"]
    size, mlp_dim = model["hidden_size"], encoder["mlp_dim"]
    patch_height, patch_width = model["patch_size"]
    patches = (image_size[0] // patch_height) * (image_size[1] // patch_width)
    tokens = patches + (model["classifier"] == "token")
    moe = encoder.get("moe") or {}
    moe_layers = tuple(moe.get("layers", ()))
    router = moe.get("router") or {}

    embedding = patches * patch_height * patch_width * 3 * size
    attention = tokens * 4 * size * size + 2 * tokens * tokens * size
    dense_mlp = tokens * 2 * size * mlp_dim
    kind, num_experts = ROUTERS[router.get("name", DEFAULT_ROUTER)], moe.get("num_experts", 0)
    slots = getattr(kind, "slots_per_expert", None)
    if slots is None:
        chosen = router.get("num_selected_experts", 1) + getattr(kind, "mean_extra_choices", 0)
        used, compared = chosen * tokens, num_experts
    else:
        used = compared = num_experts * slots(router, tokens, num_experts)
    used += tokens * moe.get("num_shared_experts", 0)
    experts = round(used * 2 * size * (moe.get("mlp_dim") or mlp_dim))
    routing = tokens * size * compared
    num_layers, num_moe = encoder["num_layers"], len(moe_layers)
    # The members of an ensemble each compute the blocks from the first with experts on.
    members = moe.get("ensemble_size", 1)
    shared = min(moe_layers, default=num_layers)
    blocks = shared + members * (num_layers - shared)
    num_moe *= members

    representation = model.get("representation_size")
    head = (representation or size) * (model["num_classes"] or 0)
    head += size * (representation or 0)
    head *= members
    others = embedding + blocks * attention + (blocks - num_moe) * dense_mlp + head
    return num_moe * experts, others + num_moe * routing
