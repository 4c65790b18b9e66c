"""The `.npz` files of ViT: names and shapes of all released models, none of which is read here."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.npz import model_fields, with_our_names
from vmoe_prc.checkpoints.params import read_params
from vmoe_prc.checkpoints.pretrained import pretrained_model
from vmoe_prc.checkpoints.transfer import plan_reading, transfer
from vmoe_prc.models import VisionTransformerMoe
from vmoe_prc.recipes import FINE_TUNE_RULES

# Of the files in gs://vit_models: width, hidden width of the MLPs, heads, blocks, patch side, side
# of the images, classifier, and whether `pre_logits` is there.
RELEASED = {
    "augreg/Ti_16": (192, 768, 3, 12, 16, 224, "token", False),
    "augreg/S_32": (384, 1536, 6, 12, 32, 224, "token", False),
    "augreg/S_16": (384, 1536, 6, 12, 16, 384, "token", False),
    "augreg/B_32": (768, 3072, 12, 12, 32, 224, "token", False),
    "augreg/B_16": (768, 3072, 12, 12, 16, 224, "token", False),
    "augreg/B_8": (768, 3072, 12, 12, 8, 224, "token", False),
    "augreg/L_16": (1024, 4096, 16, 24, 16, 224, "token", False),
    "imagenet21k/ViT-B_16": (768, 3072, 12, 12, 16, 224, "token", True),
    "imagenet21k/ViT-B_32": (768, 3072, 12, 12, 32, 224, "token", True),
    "imagenet21k/ViT-L_16": (1024, 4096, 16, 24, 16, 224, "token", True),
    "imagenet21k/ViT-L_32": (1024, 4096, 16, 24, 32, 224, "token", True),
    "imagenet21k/ViT-H_14": (1280, 5120, 16, 32, 14, 224, "token", True),
    "gsam/ViT-S_16-gap-norep": (384, 1536, 6, 12, 16, 224, "gap", False),
    "gsam/ViT-S_32-gap-norep": (384, 1536, 6, 12, 32, 224, "gap", False),
    "gsam/ViT-B_16-gap-norep": (768, 3072, 12, 12, 16, 224, "gap", False),
    "gsam/ViT-B_32-gap-norep": (768, 3072, 12, 12, 32, 224, "gap", False),
}
TINY = (8, 16, 2, 2, 4, 8, "token", True)
# Numbers of the second norm, the attention and the MLP: of all layers of a block, or of each kind.
OLD, NEW = (2, 1, 3), (1, 0, 0)


def shapes_of(released, numbers=OLD, prefix="", classes=21_843):
    width, mlp_dim, heads, depth, patch, size, classifier, representation = released
    second_norm, attention, mlp = numbers
    tokens = (size // patch) ** 2 + (classifier == "token")
    shapes = {
        **({"cls": (1, 1, width)} if classifier == "token" else {}),
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, tokens, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, classes),
        "head/bias": (classes,),
    }
    if representation:
        shapes |= {"pre_logits/kernel": (width, width), "pre_logits/bias": (width,)}
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        name = f"{block}/MultiHeadDotProductAttention_{attention}"
        for part in ("query", "key", "value"):
            shapes[f"{name}/{part}/kernel"] = (width, heads, width // heads)
            shapes[f"{name}/{part}/bias"] = (heads, width // heads)
        shapes[f"{name}/out/kernel"] = (heads, width // heads, width)
        shapes[f"{name}/out/bias"] = (width,)
        for n in (0, second_norm):
            shapes |= {f"{block}/LayerNorm_{n}/{part}": (width,) for part in ("scale", "bias")}
        for n, (before, after) in enumerate(((width, mlp_dim), (mlp_dim, width))):
            shapes[f"{block}/MlpBlock_{mlp}/Dense_{n}/kernel"] = (before, after)
            shapes[f"{block}/MlpBlock_{mlp}/Dense_{n}/bias"] = (after,)
    return {prefix + name: shape for name, shape in shapes.items()}


def read_shapes(shapes):
    """What `read_params` would give, without values."""
    named = with_our_names(
        {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}, "vit.npz"
    )
    return {f"params/{name}": x for name, x in named.items()}


def model_shapes(fields, size, **options):
    model = VisionTransformerMoe(num_classes=5, deterministic=True, **fields, **options)
    images = jax.ShapeDtypeStruct((8, size, size, 3), jnp.float32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), images)
    return flax.traverse_util.flatten_dict(abstract, sep="/")


@pytest.mark.parametrize("name", RELEASED)
def test_all_arrays_of_released_files_go_where_they_belong(name):
    released = RELEASED[name]
    source = read_shapes(shapes_of(released))
    fields = model_fields(source)
    width, mlp_dim, heads, depth, patch, size, classifier, representation = released
    assert fields == {
        "patch_size": (patch, patch),
        "hidden_size": width,
        "classifier": classifier,
        "encoder": {"num_layers": depth, "mlp_dim": mlp_dim, "num_heads": heads},
    }
    target = model_shapes(fields, size)
    copied, unused = plan_reading(source, target, FINE_TUNE_RULES, raise_if_target_unmatched=False)
    heads = {"params/head/kernel", "params/head/bias"}
    positions = "params/Encoder/posembed_input/pos_embedding"  # by `vit_zoom`, also where equal
    assert target.keys() - copied.keys() == heads | {positions}
    assert source[positions].shape == target[positions].shape
    gone = {"params/pre_logits/kernel", "params/pre_logits/bias"} if representation else set()
    assert set(unused) == heads | gone


@pytest.mark.parametrize(
    ("numbers", "prefix"), [(OLD, ""), (OLD, "opt/target/"), (NEW, ""), (NEW, "params/")]
)
def test_a_file_is_up_cycled_at_another_resolution(numbers, prefix, tmp_path):
    """Old names, names of older programs, new names, and names of big_vision."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(TINY, numbers, prefix, classes=10)
    path = tmp_path / "vit.npz"
    np.savez(path, **{k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})
    source = read_params(path)
    fields = pretrained_model(path, num_classes=5, image_size=12, num_experts=4, num_moe_layers=1)
    model = {k: v for k, v in fields["model"].items() if k not in ("name", "num_classes")}
    target = model_shapes(model, 12)
    options = {k: v for k, v in fields["initialization"].items() if k.startswith("r")}
    arrays, _ = transfer(source, target, **options)
    router = "params/Encoder/encoderblock_1/Moe/Router/dense/kernel"
    assert target.keys() - arrays.keys() == {"params/head/kernel", "params/head/bias", router}
    dense = source["params/Encoder/encoderblock_1/Mlp/Dense_1/kernel"]
    experts = arrays["params/Encoder/encoderblock_1/Moe/Mlp/Dense_1/kernel"]
    np.testing.assert_array_equal(experts, np.broadcast_to(dense, (4, *dense.shape)))
    first = arrays["params/Encoder/encoderblock_0/LayerNorm_1/scale"]
    number = {OLD: 2, NEW: 1}[numbers]
    with np.load(path) as file:
        theirs = file[f"{prefix}Transformer/encoderblock_0/LayerNorm_{number}/scale"]
    np.testing.assert_array_equal(first, theirs)


def test_pooling_by_attention_of_big_vision():
    names = {
        "params/Transformer/encoder_norm/scale": "Encoder/encoder_norm/scale",
        "params/pos_embedding": "Encoder/posembed_input/pos_embedding",
        "params/MAPHead_0/probe": "MapHead/probe",
        "params/MAPHead_0/LayerNorm_0/bias": "MapHead/LayerNorm/bias",
        "params/MAPHead_0/MlpBlock_0/Dense_0/bias": "MapHead/Mlp/Dense_0/bias",
        "params/MAPHead_0/MultiHeadDotProductAttention_0/out/bias": (
            "MapHead/MultiHeadDotProductAttention/out/bias"
        ),
        "opt/0/mu": None,
    }
    renamed = with_our_names({name: i for i, name in enumerate(names)}, "vit.npz")
    assert list(renamed) == [name for name in names.values() if name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv_root/kernel", "holds a hybrid of a ResNet and a transformer"),
        ("block1/unit1/conv1/kernel", "holds a hybrid of a ResNet and a transformer"),
        ("MixerBlock_0/LayerNorm_0/scale", "holds an MLP-Mixer"),
        ("params/img/Transformer/encoder_norm/scale", "holds two towers, of images and of text"),
        ("params/Transformer/encoderblock/LayerNorm_0/scale", "holds blocks stacked in one array"),
    ],
)
def test_other_models_are_refused_in_one_line(name, message, tmp_path):
    path = tmp_path / "R50+ViT-B_16.npz"
    np.savez(path, **{"Transformer/encoder_norm/scale": np.ones(3), name: np.ones(3)})
    with pytest.raises(CheckpointError, match=message) as error:
        read_params(path)
    assert "\n" not in str(error.value)


def test_reads_bfloat16(tmp_path):
    """NumPy writes it as two bytes without a type."""
    x = jnp.asarray([[1.5, -2.25]], jnp.bfloat16)
    np.savez(tmp_path / "x.npz", **{"head/kernel": np.asarray(x)})
    read = read_params(tmp_path / "x.npz")["params/head/kernel"]
    assert read.dtype == jnp.bfloat16
    np.testing.assert_array_equal(read, x)
