"""Every recipe takes three steps, by its command, on data of its real builder."""

import importlib
import json

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.testing.mocking import RandomFakeGenerator

from configs import digits_models
from vmoe_prc.data.builders import builder_factory
from vmoe_prc.data.image_lists import Item
from vmoe_prc.data.shards import ImageListBuilder
from vmoe_prc.train.program import build_program

NUM_EXAMPLES = 200  # one in a hundred of them is still two


def prepare(name, splits, data_dir):
    """Fills the builder of a data set with random examples of its own features."""
    rng = np.random.default_rng(0)
    builder = builder_factory(name, data_dir, None)()
    features = builder.info.features
    size = features["image"].shape
    shape = size if None not in size else (40, 48, 3)
    examples = [
        # Random boxes would be upside down, and random large images slow.
        example
        | {"image": rng.integers(256, size=shape, dtype=np.uint8)}
        | ({"head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)} if "head_bbox" in features else {})
        for example in RandomFakeGenerator(features, num_examples=NUM_EXAMPLES)
    ]
    if isinstance(builder, ImageListBuilder):
        items = list(write_items(examples, data_dir.parent))
        builder.list_items = lambda manual_dir: dict.fromkeys(splits, items)
    else:
        builder._split_generators = lambda dl_manager: {s: enumerate(examples) for s in splits}
    builder.download_and_prepare()


def write_items(examples, directory):
    for i, example in enumerate(examples):
        path = directory / f"{i}.JPEG"
        PIL.Image.fromarray(example["image"]).save(path)
        yield Item(path.name, int(example["label"]), str(path), path.stat().st_size)


RECIPES = {
    "imagenet_prc:k=1": ("imagenet2012", ["train", "validation"]),
    "imagenet_finetune_prc": ("imagenet2012", ["train", "validation"]),
    "imagenet21k_vmoe": ("imagenet21k", ["full"]),
    "cifar_prc:dataset=cifar100,prc=off": ("cifar100", ["train", "test"]),
    "flowers_prc:k=1": ("oxford_flowers102", ["train", "validation", "test"]),
    "pets_prc:seed=1": ("oxford_iiit_pet", ["train", "test"]),
    "fashion_mnist_prc": ("fashion_mnist", ["train", "test"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_takes_three_steps(recipe, three_steps, tmp_path):
    name, splits = RECIPES[recipe]
    prepare(name, splits, tmp_path / "data")
    path, colon, arguments = recipe.partition(":")
    sections = importlib.import_module(f"configs.{path}").get_config(arguments).dataset
    changes = {f"dataset.{split}.data_dir": tmp_path / "data" for split in sections}
    # Eight images at once in every split: one routing group.
    for split, section in sections.items():
        changes[f"dataset.{split}.batch_size"] = 4 if "two_views" in section.process else 8
    if path == "imagenet21k_vmoe":
        # The held-out part of the recipe is longer than the few examples here.
        changes |= {"dataset.train.split": "full[100:]", "dataset.val.split": "full[:100]"}
    small = {
        "dataset.train.shuffle_buffer": 16,
        "model.hidden_size": 32,
        "model.encoder.num_layers": 1,
        "model.encoder.moe.layers": "(0,)",
        "model.encoder.mlp_dim": 32,
        "model.encoder.num_heads": 4,
    }
    workdir = three_steps(f"configs/{path}.py{colon}{arguments}", **changes, **small)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 3
    assert any("train/total_loss" in r and float(r["train/total_loss"]) > 0 for r in records)
    assert "Classification" in (workdir / "summary.txt").read_text()


# Their parts are in no row of test_choices.
TRAINED = ("dense", "ensemble")


@pytest.mark.slow
@pytest.mark.parametrize("model", TRAINED)
def test_a_small_model_takes_three_steps(model, three_steps, digits_dir):
    changes = {f"dataset.{split}.data_dir": digits_dir for split in ("train", "test")}
    layers = {} if model == "dense" else {"model.encoder.moe.layers": "(0,)"}
    small = {"model.encoder.num_layers": 1, **layers}
    workdir = three_steps(f"configs/digits_models.py:model={model}", **changes, **small)
    assert "calibration/ece" in (workdir / "summary.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in digits_models.MOE if name not in TRAINED])
def test_the_steps_of_every_other_small_model_are_traced(model, digits_dir):
    config = digits_models.get_config(f"model={model}")
    for dataset in config.dataset.values():
        dataset.data_dir = digits_dir
    config.model.encoder.update({"num_layers": 1})
    config.model.encoder.moe.layers = (0,)
    # It traces a step of training; all routers take steps and are evaluated in test_choices.
    assert "calibration" in [evaluator.name for evaluator in build_program(config).evaluators]
