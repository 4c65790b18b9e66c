"""Exports, each run by its own runtime."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from PIL import Image
from small_run import small_config

import vmoe_prc
from vmoe_prc.checkpoints.export import main
from vmoe_prc.config import ConfigError, complete
from vmoe_prc.export.model_card import count_active
from vmoe_prc.export.onnx import build_onnx
from vmoe_prc.export.saved_model import build_module
from vmoe_prc.export.stablehlo import export_program
from vmoe_prc.export.tf_preprocessing import build_preprocessing
from vmoe_prc.models import create_model
from vmoe_prc.predict.model import TrainedModel
from vmoe_prc.predict.preprocessing import Preprocessing

TOLERANCE = 1e-4
MOE = "model.encoder.moe"


@pytest.fixture(scope="module")
def model(finished):
    return vmoe_prc.open(finished[0])


@pytest.fixture(scope="module")
def pixels(model):
    shape = (6, *model.image_size, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def expected(model, pixels):
    return jax.device_get(jax.jit(model.forward)(pixels))


def assert_equal(outputs, expected):
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        found = np.asarray(outputs[name])
        assert found.dtype == value.dtype, name
        np.testing.assert_allclose(found, value, rtol=0, atol=TOLERANCE, err_msg=name)


def random_model(data_dir, **changes):
    """A model whose parameters are random, also those that start at zero."""
    config = complete(small_config(data_dir, "prc=off", **changes))
    model = TrainedModel("random", config, {})
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), np.float32)
    network = create_model(model.model_options(model.image_size), deterministic=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(1)
    model.params = jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.2, x.shape)), shapes)
    return model


def test_stablehlo_for_all_platforms_and_any_batch(finished, model, pixels, expected, tmp_path):
    path = tmp_path / "model.stablehlo"
    assert main([str(finished[0]), str(path)]) == 0
    program = jax.export.deserialize(path.read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert_equal(program.call(pixels), expected)
    alone = program.call(pixels[2:3])
    assert_equal(alone, {name: value[2:3] for name, value in expected.items()})


def test_onnx_in_onnxruntime(finished, model, pixels, expected, tmp_path):
    path = tmp_path / "model.onnx"
    assert main([str(finished[0]), str(path)]) == 0
    session = onnxruntime.InferenceSession(path)
    assert_equal(run_onnx(session, pixels), expected)
    alone = run_onnx(session, pixels[2:3])
    assert_equal(alone, {name: value[2:3] for name, value in expected.items()})
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(model.classes)
    assert json.loads(metadata["preprocessing"])["image_size"] == list(model.image_size)


def run_onnx(session, pixels):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))


def test_saved_model_in_tensorflow(finished, model, pixels, expected, tmp_path):
    path = tmp_path / "saved"
    assert main([str(finished[0]), str(path), "--format=saved_model"]) == 0
    # The parameters are in the program, and TensorFlow reads no file of more than 2 GiB.
    assert (path / "saved_model.pb").read_bytes().count(b"StableHLO_v") == 1
    loaded = tf.saved_model.load(str(path))
    assert_equal(loaded.signatures["pixels"](pixels=tf.constant(pixels)), expected)
    # Decoding and preprocessing are in it.
    rng = np.random.default_rng(3)
    encoded = [png(rng.integers(0, 256, (40 + i, 61, 3), np.uint8)) for i in range(3)]
    served = loaded.signatures["serving_default"](images=tf.constant(encoded))
    own = build_preprocessing(model.preprocessing, (*model.image_size, 3))(
        tf.constant(encoded)
    ).numpy()
    assert_equal(served, jax.device_get(jax.jit(model.forward)(own)))
    assert [name.decode() for name in loaded.classes.numpy()] == list(model.classes)


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


VARIANTS = {
    "k=1, map": {f"{MOE}.router.num_selected_experts": 1, "model.classifier": "map"},
    "normalized, gap": {f"{MOE}.router.normalize_gates": True, "model.classifier": "gap"},
    "shared, sincos": {
        f"{MOE}.num_shared_experts": 2,
        "model.encoder.position_emb.name": "sincos2d",
        "model.representation_size": 12,
    },
    "bias": {f"{MOE}.router.name": "BiasBalancedRouter"},
    "whole image": {f"{MOE}.router.name": "WholeImageRouter"},
    "sigmoid": {"loss.name": "sigmoid_xent"},
}
CHOICES = {
    "experts choose": {"name": "NoisyTopItemsPerExpertRouter"},
    "soft": {"name": "SoftRouter"},
}


@pytest.mark.parametrize("variant", [*VARIANTS, *CHOICES])
def test_every_router_and_head_in_onnx(digits_dir, pixels, variant):
    changes = VARIANTS.get(variant, {f"{MOE}.router": CHOICES.get(variant)})
    model = random_model(digits_dir, **changes)
    session = onnxruntime.InferenceSession(build_onnx(model).SerializeToString())
    assert_equal(run_onnx(session, pixels), jax.device_get(jax.jit(model.forward)(pixels)))


@pytest.mark.parametrize("variant", CHOICES)
def test_other_routers_in_stablehlo_and_tensorflow(digits_dir, pixels, variant):
    model = random_model(digits_dir, **{f"{MOE}.router": CHOICES[variant]})
    expected = jax.device_get(jax.jit(model.forward)(pixels))
    assert_equal(export_program(model).call(pixels), expected)
    assert_equal(build_module(model).pixels(tf.constant(pixels)), expected)


def test_a_folder_opens_and_says_what_it_is(finished, model, pixels, expected, tmp_path, capsys):
    folder = tmp_path / "digits"
    command = [str(finished[0]), str(folder), "--format=folder", "--license=cc-by-4.0"]
    assert main(command) == 0
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(map(str, folder.iterdir()))
    opened = vmoe_prc.open(folder)
    assert opened.classes == model.classes
    assert_equal(jax.device_get(jax.jit(opened.forward)(pixels)), expected)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "\nlicense: cc-by-4.0\n" in card
    for part in ("| test | digits | test | 359 |", "top-1 accuracy", "agreement of first experts"):
        assert part in card
    total = sum(x.size for x in jax.tree.leaves(model.params))
    assert f"{total:,}, of which a token uses {count_active(model.params, model.config):,}" in card
    # Again over itself, from itself, but not over anything else.
    assert main([str(folder), str(folder), "--format=folder"]) == 0
    assert main([str(folder), str(finished[0]), "--format=folder"]) == 2
    assert "has files that are no exported model" in capsys.readouterr().err


def test_active_parameters(model):
    experts = model.params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]
    routed = sum(x.size for x in jax.tree.leaves(experts))
    total = sum(x.size for x in jax.tree.leaves(model.params))
    moe = model.config.model.encoder.moe
    share = moe.router.num_selected_experts / moe.num_experts
    assert count_active(model.params, model.config) == total - routed * (1 - share)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_preprocessing_in_tensorflow(orientation, endian):
    rng = np.random.default_rng(orientation)
    photo = rng.integers(0, 256, (5, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0112] = "a maker", orientation
    clear = np.dstack([photo, photo[..., 0]])
    encoded = [png(photo, format="JPEG", exif=exif), png(clear), png(photo, format="JPEG")]
    decode = "decode(orient=True, background=255)"
    ours = Preprocessing(f"{decode}|resize_small(36)|central_crop(32)|value_range(0, 1)")
    theirs = build_preprocessing(ours, (32, 32, 3))(tf.constant(encoded))
    difference = np.abs(theirs - np.stack([ours(x) for x in encoded]))
    # Values halfway between two levels may be rounded to either.
    assert difference.max() < 1.01 / 255
    assert np.mean(difference > 1e-5) < 0.01


def test_what_cannot_be_written_is_one_line(digits_dir):
    strange = random_model(digits_dir)
    strange.preprocessing = Preprocessing("decode|random_crop(32)")
    with pytest.raises(ConfigError, match="'random_crop': is not written to a SavedModel"):
        build_module(strange)
