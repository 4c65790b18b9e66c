"""Vision transformers of timm and of Hugging Face's transformers, under our names.

Known are ViT, DeiT, DINOv2 (with and without registers) and DINOv3, as
timm and transformers name their arrays in safetensors files. What the models compute is the
same as ours to rounding, with the options that `architecture` gives:

* queries, keys and values get an axis of heads; linear layers are transposed;
* pixels are normalised by a mean and a standard deviation there and lie in [-1, 1] here; the
  difference is folded into the patch embedding;
* position embeddings of only the patches get a zero for the class token;
* DeiT's distillation token, whose place never changes, is a register; its own head is not used.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vmoe_prc.checkpoints.manager import CheckpointError

Arrays = Mapping[str, np.ndarray]

# Widths whose heads do not have the usual 64 channels, with timm's numbers of heads.
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_HEAD_SIZE = 64
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Trained from this value in DINOv2; a model that starts from arrays does not need it.
_LAYER_SCALE = 1e-5

_BLOCK = r"(?:(?:\w+\.)*?(?:blocks|layer|layers)\.(?:\d+\.)?(\d+)\.)"
# Names of arrays in one vocabulary; the first rule that matches the whole name counts.
_RULES = (
    (r"(?:\w+\.)*?cls_token", "cls"),
    (r"(?:\w+\.)*?(?:pos_embed|position_embeddings)", "positions"),
    (r"(?:\w+\.)*?(?:reg_token|register_tokens)", "registers"),
    (r"(?:\w+\.)*?(?:dist_token|distillation_token)", "distillation"),
    (r"(?:\w+\.)*?patch_embed(?:dings)?(?:\.proj(?:ection)?)?\.(weight|bias)", r"embedding.\1"),
    (_BLOCK + r"(?:norm1|layernorm_before)\.(weight|bias)", r"\1.norm0.\2"),
    (_BLOCK + r"(?:norm2|layernorm_after)\.(weight|bias)", r"\1.norm1.\2"),
    (_BLOCK + r"attn\.qkv\.(weight|bias)", r"\1.qkv.\2"),
    (_BLOCK + r"attn\.(q|k|v)_bias", r"\1.\2.bias"),
    (
        _BLOCK + r"(?:attention\.attention|attention|attn)\.(q|k|v)\w*\."
        r"(weight|bias)",
        r"\1.\2.\3",
    ),
    (
        _BLOCK + r"(?:attention\.output\.dense|attention\.o_proj|attn\.proj|attention\.dense)\."
        r"(weight|bias)",
        r"\1.out.\2",
    ),
    (_BLOCK + r"(?:mlp\.fc1|mlp\.up_proj|intermediate\.dense)\.(weight|bias)", r"\1.fc0.\2"),
    (_BLOCK + r"(?:mlp\.fc2|mlp\.down_proj|output\.dense)\.(weight|bias)", r"\1.fc1.\2"),
    (_BLOCK + r"(?:ls1\.gamma|gamma_1|layer_scale1\.lambda1)", r"\1.scale0"),
    (_BLOCK + r"(?:ls2\.gamma|gamma_2|layer_scale2\.lambda1)", r"\1.scale1"),
    (r"(?:\w+\.)*?(?:norm|layernorm)\.(weight|bias)", r"norm.\1"),
    (r"(?:head|classifier|cls_classifier)\.(weight|bias)", r"head.\1"),
    (r"(?:head_dist|distillation_classifier)\.(weight|bias)", ""),
    # No model uses these after the pre-training, and buffers are computed again.
    (r"(?:\w+\.)*?(?:mask_token|rope\.\w+|rope_embeddings\.\w+|inv_freq)", ""),
    # The pooler of transformers is not trained with most models, and its classifier skips it.
    (r"(?:\w+\.)*?pooler\.dense\.(weight|bias)", ""),
)
_UNSUPPORTED = {
    r"fc_norm\.": "a norm after the pooling",
    r"attn_pool\.": "pooling by attention",
    r"q_norm|k_norm": "norms of queries and keys",
    r"gate_proj|weights_in|fc1_g|w12": "gated MLPs (SwiGLU)",
    r"norm_pre\.": "a norm before the blocks",
    r"relative_position|rel_pos": "relative positions",
}


@dataclasses.dataclass(frozen=True)
class TorchVit:
    """A vision transformer of timm or transformers.

    Attributes:
      params: Its arrays by our names, such as `params/Encoder/encoder_norm/scale`.
      model: Fields of `config.model` that a model with these arrays has, without experts.
      grid: (rows, columns) of the patches of its position embedding; None if it has none.
      notes: Assumptions, for the user.
    """

    params: dict[str, np.ndarray]
    model: dict[str, Any]
    grid: tuple[int, int] | None
    notes: tuple[str, ...]


def is_torch_vit(names: Sequence[str]) -> bool:
    """Whether these are names of arrays of a vision transformer of timm or transformers."""
    return any(re.fullmatch(r"(\w+\.)*patch_embed(dings)?\.(\w+\.)?weight", n) for n in names)


def convert(arrays: Arrays, info: Mapping[str, Any], source: str) -> TorchVit:
    """Gives the arrays of a vision transformer our names and shapes.

    Args:
      arrays: Arrays by their names in the file.
      info: Contents of `config.json` and `preprocessor_config.json` next to the file; empty if
        there are none.
      source: The file, for errors.

    Raises:
      CheckpointError: If it has a part that our model does not have.
    """
    found = _renamed(arrays, source)
    width = found["embedding.weight"].shape[0]
    info = {**info, **info.get("model_args", {})}
    notes: list[str] = []
    heads = _num_heads(info, width, source)
    mean, std = _normalisation(info, notes)
    params = {"cls": found["cls"]} if "cls" in found else {}
    kernel, bias = _embedding(found, mean, std)
    params |= {"embedding/kernel": kernel, "embedding/bias": bias}
    grid = None
    if "distillation" in found:
        found["registers"] = found["distillation"] + found["positions"][:, 1:2]
        found["positions"] = np.delete(found["positions"], 1, axis=1)
        notes.append("the head of the distillation token is not used")
    if "positions" in found:
        positions, grid = _positions(found["positions"], "cls" in found, info, source)
        params["Encoder/posembed_input/pos_embedding"] = positions
    if "registers" in found:
        params["Encoder/registers/tokens"] = found["registers"]
    depth = 1 + max(int(name.partition(".")[0]) for name in found if name[0].isdigit())
    for block in range(depth):
        layers = _block(found, str(block), heads, source)
        params |= {f"Encoder/encoderblock_{block}/{name}": x for name, x in layers.items()}
    params |= _norm(found, "norm", "Encoder/encoder_norm")
    has_head = "head.weight" in found and found["head.weight"].shape[1] == width
    if has_head:
        params |= _dense(found, "head", "head")
    encoder = {
        "num_layers": depth,
        "mlp_dim": found["0.fc0.weight"].shape[0],
        "num_heads": heads,
        "gelu": _gelu(info, source),
        "layer_norm_epsilon": _epsilon(info, arrays),
        "num_registers": found["registers"].shape[1] if "registers" in found else 0,
        "layer_scale": _LAYER_SCALE if "0.scale0" in found else None,
    }
    if "positions" not in found:
        base = float(info.get("rope_theta") or info.get("rope_temperature") or 100.0)
        encoder["position_emb"] = {"name": "rope2d", "base": base}
    model = {
        "patch_size": tuple(found["embedding.weight"].shape[2:]),
        "hidden_size": width,
        "classifier": "token" if "cls" in found else "gap",
        "encoder": encoder,
    }
    if has_head:
        model["num_classes"] = found["head.weight"].shape[0]
    params = {f"params/{name}": np.ascontiguousarray(x) for name, x in params.items()}
    return TorchVit(params, model, grid, tuple(notes))


def to_timm(params: Arrays) -> tuple[dict[str, np.ndarray], list[str]]:
    """Gives the dense part of a model of ours timm's names, for pixels of mean and std 0.5.

    Args:
      params: Arrays by our names, such as `params/head/kernel`.

    Returns:
      Arrays by timm's names, and the names of those that timm's `VisionTransformer` has no
      place for, such as experts.
    """
    left = {name.removeprefix("params/"): np.asarray(x) for name, x in params.items()}
    out: dict[str, np.ndarray] = {}
    renames = {
        "cls": "cls_token",
        "Encoder/posembed_input/pos_embedding": "pos_embed",
        "Encoder/registers/tokens": "reg_token",
        "Encoder/encoder_norm/scale": "norm.weight",
        "Encoder/encoder_norm/bias": "norm.bias",
        "embedding/bias": "patch_embed.proj.bias",
    }
    for ours, theirs in renames.items():
        if ours in left:
            out[theirs] = left.pop(ours)
    if "reg_token" in out and "pos_embed" in out:
        # timm's models with registers embed only the places of patches.
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:]
    out["patch_embed.proj.weight"] = left.pop("embedding/kernel").transpose(3, 2, 0, 1)
    _linear_to_timm(left, "head", out, "head")
    blocks = {int(n.split("_")[1].split("/")[0]) for n in left if n.startswith("Encoder/encoderb")}
    for block in sorted(blocks):
        _block_to_timm(left, f"Encoder/encoderblock_{block}", out, f"blocks.{block}")
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in out.items()}
    return arrays, sorted(left)


def _renamed(arrays: Arrays, source: str) -> dict[str, np.ndarray]:
    """Returns the arrays in one vocabulary, in float32."""
    found: dict[str, np.ndarray] = {}
    unknown = []
    for name, x in arrays.items():
        for pattern, reason in _UNSUPPORTED.items():
            if re.search(pattern, name):
                raise CheckpointError(f"{source}: {name!r}: our model does not have {reason}")
        rule = next((rule for rule in _RULES if re.fullmatch(rule[0], name)), None)
        if rule is None:
            unknown.append(name)
        elif rule[1]:
            found[re.sub(f"^{rule[0]}$", rule[1], name)] = np.asarray(x, np.float32)
    if unknown:
        listed = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise CheckpointError(f"{source}: our model has no arrays like {listed}")
    for name in ("embedding.weight", "embedding.bias", "0.fc0.weight", "norm.weight"):
        if name not in found:
            raise CheckpointError(f"{source}: has no {name}, in the words of a vision transformer")
    return found


def _num_heads(info: Mapping[str, Any], width: int, source: str) -> int:
    heads = info.get("num_attention_heads") or info.get("num_heads") or _HEADS.get(width)
    if heads is None and width % _HEAD_SIZE == 0:
        heads = width // _HEAD_SIZE
    if heads is None or width % int(heads):
        raise CheckpointError(
            f"{source}: the number of heads is not known; write it to a config.json next to the "
            'file, such as {"num_heads": 3}'
        )
    return int(heads)


def _normalisation(info: Mapping[str, Any], notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    nested = info.get("pretrained_cfg", {})
    mean = info.get("image_mean") or nested.get("mean") or info.get("mean")
    std = info.get("image_std") or nested.get("std") or info.get("std")
    if mean is None or std is None:
        model_type = str(info.get("model_type", "")) + str(info.get("architecture", ""))
        mean, std = _IMAGENET if re.search("deit|dino", model_type) else _HALF
        notes.append(
            f"pixels were normalised by mean {mean} and std {std}: assumed, as no config.json or "
            "preprocessor_config.json next to the file says"
        )
    return np.asarray(mean, np.float64), np.asarray(std, np.float64)


def _embedding(found: Arrays, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Folds the normalisation of pixels into the embedding of patches.

    A pixel p in [0, 1] is (p - mean) / std there, and x = 2 p - 1 here.
    """
    weight = found["embedding.weight"].astype(np.float64)
    shift = (0.5 - mean) / std
    bias = found["embedding.bias"] + np.einsum("ocij,c->o", weight, shift)
    kernel = (weight / (2 * std)[:, None, None]).transpose(2, 3, 1, 0)
    return kernel.astype(np.float32), bias.astype(np.float32)


def _positions(
    positions: np.ndarray, has_cls: bool, info: Mapping[str, Any], source: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns position embeddings with a place for the class token, and their grid."""
    positions = positions.reshape(1, -1, positions.shape[-1])
    count = positions.shape[1]
    side = int(count**0.5 + 0.5)
    with_token = has_cls and side * side != count
    grid_size = info.get("grid_size")
    patches = count - with_token
    side = int(patches**0.5 + 0.5)
    rows, cols = grid_size or (side, side)
    if rows * cols != patches:
        raise CheckpointError(
            f"{source}: {patches} position embeddings are no square grid; write it to a "
            'config.json next to the file, such as {"grid_size": [14, 10]}'
        )
    if has_cls and not with_token:
        zero = np.zeros((1, 1, positions.shape[-1]), positions.dtype)
        positions = np.concatenate([zero, positions], axis=1)
    return positions, (int(rows), int(cols))


def _block(found: Arrays, block: str, heads: int, source: str) -> dict[str, np.ndarray]:
    params = _norm(found, f"{block}.norm0", "LayerNorm_0")
    params |= _norm(found, f"{block}.norm1", "LayerNorm_1")
    if f"{block}.qkv.weight" in found:
        weights = np.split(found[f"{block}.qkv.weight"], 3)
        biases = found.get(f"{block}.qkv.bias")
        biases = [None] * 3 if biases is None else np.split(biases, 3)
    elif f"{block}.q.weight" in found:
        weights = [found[f"{block}.{name}.weight"] for name in "qkv"]
        biases = [None] * 3
    else:
        raise CheckpointError(f"{source}: block {block} has no attention")
    for name, key, weight, bias in zip(
        ("query", "key", "value"), "qkv", weights, biases, strict=True
    ):
        bias = found.get(f"{block}.{key}.bias", bias)
        width = weight.shape[1]
        bias = np.zeros(width, np.float32) if bias is None else bias
        params[f"SelfAttention/{name}/kernel"] = weight.T.reshape(width, heads, -1)
        params[f"SelfAttention/{name}/bias"] = bias.reshape(heads, -1)
    out = found[f"{block}.out.weight"]
    params["SelfAttention/out/kernel"] = out.T.reshape(heads, -1, out.shape[0])
    params["SelfAttention/out/bias"] = _bias(found, f"{block}.out", out.shape[0])
    for layer in "01":
        params |= _dense(found, f"{block}.fc{layer}", f"Mlp/Dense_{layer}")
        if f"{block}.scale{layer}" in found:
            params[f"LayerScale_{layer}/scale"] = found[f"{block}.scale{layer}"]
    return params


def _norm(found: Arrays, theirs: str, ours: str) -> dict[str, np.ndarray]:
    return {f"{ours}/scale": found[f"{theirs}.weight"], f"{ours}/bias": found[f"{theirs}.bias"]}


def _dense(found: Arrays, theirs: str, ours: str) -> dict[str, np.ndarray]:
    weight = found[f"{theirs}.weight"]
    bias = _bias(found, theirs, weight.shape[0])
    return {f"{ours}/kernel": weight.T, f"{ours}/bias": bias}


def _bias(found: Arrays, layer: str, size: int) -> np.ndarray:
    return found.get(f"{layer}.bias", np.zeros(size, np.float32))


def _gelu(info: Mapping[str, Any], source: str) -> str:
    name = info.get("hidden_act") or info.get("act_layer") or "gelu"
    forms = {
        "gelu": "exact",
        "gelu_tanh": "tanh",
        "gelu_new": "tanh",
        "gelu_pytorch_tanh": "tanh",
    }
    if name not in forms:
        raise CheckpointError(f"{source}: our model does not have the activation {name!r}")
    return forms[name]


def _epsilon(info: Mapping[str, Any], arrays: Arrays) -> float:
    if "layer_norm_eps" in info:
        return float(info["layer_norm_eps"])
    names = " ".join(arrays)
    if "layernorm_before" in names:
        return 1e-12  # ViT and DeiT of transformers.
    return 1e-5 if "gamma_1" in names or "up_proj" in names else 1e-6


def _linear_to_timm(left: dict[str, np.ndarray], ours: str, out: dict, theirs: str):
    if f"{ours}/kernel" in left:
        kernel, bias = left.pop(f"{ours}/kernel"), left.pop(f"{ours}/bias")
        out[f"{theirs}.weight"], out[f"{theirs}.bias"] = kernel.T, bias


def _block_to_timm(left: dict[str, np.ndarray], ours: str, out: dict, theirs: str):
    for number in (0, 1):
        for name, torch_name in (("scale", "weight"), ("bias", "bias")):
            out[f"{theirs}.norm{number + 1}.{torch_name}"] = left.pop(
                f"{ours}/LayerNorm_{number}/{name}"
            )
        if (scale := left.pop(f"{ours}/LayerScale_{number}/scale", None)) is not None:
            out[f"{theirs}.ls{number + 1}.gamma"] = scale
        _linear_to_timm(left, f"{ours}/Mlp/Dense_{number}", out, f"{theirs}.mlp.fc{number + 1}")
    attention = f"{ours}/SelfAttention"
    qkv = [left.pop(f"{attention}/{name}/kernel") for name in ("query", "key", "value")]
    width = qkv[0].shape[0]
    out[f"{theirs}.attn.qkv.weight"] = np.concatenate([x.reshape(width, -1).T for x in qkv])
    biases = [left.pop(f"{attention}/{name}/bias").ravel() for name in ("query", "key", "value")]
    out[f"{theirs}.attn.qkv.bias"] = np.concatenate(biases)
    out[f"{theirs}.attn.proj.weight"] = left.pop(f"{attention}/out/kernel").reshape(-1, width).T
    out[f"{theirs}.attn.proj.bias"] = left.pop(f"{attention}/out/bias")
