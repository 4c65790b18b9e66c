"""Tiny vision transformers of timm and transformers with random weights, and what they compute.

    python -m tests.torch_vits tests/data/golden/torch_vits

writes them as these programs save them; it needs torch, timm and transformers (5).
"""

import functools
import json
import pathlib
import sys

import numpy as np

HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 8, 4, 16, 2, 2, 3


def pixels() -> np.ndarray:
    """Returns two images, (2, 8, 8, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, IMAGE, IMAGE, 3)).astype(np.uint8)


def timm_models():
    """Yields name, model, mean and standard deviation of pixels, and name of the architecture."""
    import torch
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    sizes |= {"num_heads": HEADS, "mlp_ratio": 2, "num_classes": CLASSES}
    yield "timm_vit", VisionTransformer(**sizes), HALF, "vit"
    yield "timm_dinov2", VisionTransformer(init_values=1e-5, **sizes), IMAGENET, "vit_dinov2"
    registers = VisionTransformer(init_values=1e-5, reg_tokens=4, no_embed_class=True, **sizes)
    yield "timm_dinov2_registers", registers, IMAGENET, "vit_reg4_dinov2"
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-5)
    rope = {"rope_type": "dinov3", "rope_temperature": 100, "use_rot_pos_emb": True}
    rope |= {"use_abs_pos_emb": False, "rope_rotate_half": True, "dynamic_img_size": True}
    pooling = {"use_fc_norm": False, "global_pool": "token"}
    dinov3 = Eva(
        qkv_bias=False,
        init_values=1e-5,
        num_reg_tokens=4,
        norm_layer=norm,
        **rope,
        **pooling,
        **sizes,
    )
    yield "timm_dinov3", dinov3, IMAGENET, "vit_dinov3"


def transformers_models():
    """Yields name, model, and mean and standard deviation of pixels."""
    import transformers as t

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    sizes |= {"image_size": IMAGE, "patch_size": PATCH, "num_labels": CLASSES}
    mlp = {"intermediate_size": 2 * WIDTH}
    yield "hf_vit", t.ViTForImageClassification(t.ViTConfig(**mlp, **sizes)), HALF
    yield "hf_deit", t.DeiTForImageClassification(t.DeiTConfig(**mlp, **sizes)), IMAGENET
    yield "hf_dinov2", t.Dinov2Model(t.Dinov2Config(mlp_ratio=2, **sizes)), IMAGENET
    config = t.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=4, **sizes)
    yield "hf_dinov2_registers", t.Dinov2WithRegistersModel(config), IMAGENET
    config = t.DINOv3ViTConfig(num_register_tokens=4, **mlp, **sizes)
    yield "hf_dinov3", t.DINOv3ViTModel(config), IMAGENET


def write_all(out: pathlib.Path) -> None:
    """Writes a folder for each model, with `outputs.npy`, (2, classes) or (2, width)."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    for name, model, (mean, std), architecture in timm_models():
        outputs = _outputs(model, mean, std, lambda m, x: m(x))
        (out / name).mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), out / name / "model.safetensors")
        info = {"architecture": architecture, "model_args": {"num_heads": HEADS}}
        info["pretrained_cfg"] = {"mean": mean, "std": std}
        (out / name / "config.json").write_text(json.dumps(info))
        np.save(out / name / "outputs.npy", outputs)
    for name, model, (mean, std) in transformers_models():
        outputs = _outputs(model, mean, std, _output_of_transformers)
        model.save_pretrained(out / name)
        info = {"image_mean": mean, "image_std": std}
        (out / name / "preprocessor_config.json").write_text(json.dumps(info))
        np.save(out / name / "outputs.npy", outputs)


def _outputs(model, mean, std, call) -> np.ndarray:
    import torch

    model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            p.copy_(0.3 * torch.randn_like(p) + float(is_scale))
        x = (torch.tensor(pixels()).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
        return call(model, x.permute(0, 3, 1, 2)).numpy()


def _output_of_transformers(model, x):
    output = model(pixel_values=x)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state[:, 0]


if __name__ == "__main__":
    write_all(pathlib.Path(sys.argv[1]))
