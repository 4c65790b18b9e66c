"""Vision transformers of timm and transformers compute the same under our names."""

import json
import pathlib
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from tests import torch_vits
from vmoe_prc.checkpoints.export import main as export
from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.params import read_params
from vmoe_prc.checkpoints.pretrained import open_torch, pretrained_model
from vmoe_prc.checkpoints.torch_vit import convert
from vmoe_prc.checkpoints.transfer import transfer
from vmoe_prc.models import create_model
from vmoe_prc.train.initialization import FIELD

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden" / "torch_vits"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
IMAGES = torch_vits.pixels() / np.float32(127.5) - 1


def outputs(opened):
    """Logits of a model with a head, the representation of one without."""
    options = {"name": "VisionTransformerMoe", "num_classes": None, **opened.model}
    params = flax.traverse_util.unflatten_dict(opened.params, sep="/")
    return jax.jit(create_model(options, deterministic=True).apply)(params, IMAGES)[0]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_theirs(name):
    opened = open_torch(epath.Path(GOLDEN / name))
    np.testing.assert_allclose(outputs(opened), np.load(GOLDEN / name / "outputs.npy"), atol=1e-5)


@pytest.mark.slow
def test_outputs_are_those_of_the_installed_programs(tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("transformers", minversion="5.0")
    torch_vits.write_all(tmp_path)
    for name in NAMES:
        opened = open_torch(epath.Path(tmp_path / name))
        np.testing.assert_allclose(
            outputs(opened), np.load(tmp_path / name / "outputs.npy"), atol=1e-5
        )


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov2", "timm_dinov2_registers"])
def test_export_to_the_names_of_timm(name, tmp_path, capsys):
    """Exported files hold the same model, for pixels normalised by 0.5."""
    assert export(["--names=timm", str(GOLDEN / name), str(tmp_path / "x.safetensors")]) == 0
    assert "left out" not in capsys.readouterr().out
    theirs = safetensors.numpy.load_file(GOLDEN / name / "model.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {k: x.shape for k, x in ours.items()} == {k: x.shape for k, x in theirs.items()}
    shutil.copy(GOLDEN / name / "config.json", tmp_path)
    info = json.loads((tmp_path / "config.json").read_text())
    info["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(info))
    opened = open_torch(epath.Path(tmp_path / "x.safetensors"))
    np.testing.assert_allclose(outputs(opened), np.load(GOLDEN / name / "outputs.npy"), atol=1e-5)


def test_an_up_cycled_model_gets_all_arrays_but_head_and_routers():
    fields = pretrained_model(
        GOLDEN / "timm_dinov2_registers",
        num_classes=5,
        image_size=16,
        num_experts=4,
        num_moe_layers=1,
        noise=0.01,
    )
    model = create_model(fields["model"], deterministic=True)
    shape = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)
    target = flax.traverse_util.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0), shape), sep="/"
    )
    source = read_params(fields["initialization"]["prefix"])
    initialization = fields["initialization"]
    assert initialization["clusters"] is None
    options = {k: v for k, v in initialization.items() if k not in ("prefix", "clusters")}
    arrays, moved = transfer(source, target, field=FIELD, **options)
    new = {m.target for m in moved if m.action == "new"}
    block = "params/Encoder/encoderblock_1"
    assert new == {"params/head/kernel", "params/head/bias", f"{block}/Moe/Router/dense/kernel"}
    kernel = arrays[f"{block}/Moe/Mlp/Dense_0/kernel"]
    assert np.abs(kernel - source[f"{block}/Mlp/Dense_0/kernel"]).max() < 0.02
    # The grid grows from 2 x 2 to 4 x 4 patches.
    assert arrays["params/Encoder/posembed_input/pos_embedding"].shape == (1, 17, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.mlp.gate_proj.weight", "does not have gated MLPs"),
        ("fc_norm.weight", "does not have a norm after the pooling"),
        ("blocks.0.mystery", "no arrays like 'blocks.0.mystery'"),
    ],
)
def test_parts_that_we_do_not_have_are_named(name, message):
    arrays = safetensors.numpy.load_file(GOLDEN / "timm_vit" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"vit.safetensors: .*{message}"):
        convert(arrays | {name: np.ones(3, np.float32)}, {}, "vit.safetensors")


def test_without_a_config_the_heads_are_not_known(tmp_path):
    shutil.copy(GOLDEN / "timm_vit" / "model.safetensors", tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="number of heads is not known; write it to a config"):
        read_params(tmp_path / "vit.safetensors")


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        read_params(tmp_path)
