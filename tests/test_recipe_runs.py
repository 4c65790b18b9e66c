"""Every recipe takes three steps, as a command, on data of its real builder."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.testing.mocking import RandomFakeGenerator

from configs import digits_models
from vmoe_prc.data.builders import builder_factory
from vmoe_prc.data.shards import ImageListBuilder, Item

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
def test_takes_three_steps(tmp_path, recipe):
    name, splits = RECIPES[recipe]
    prepare(name, splits, tmp_path / "data")
    path, colon, arguments = recipe.partition(":")
    result = run(path, colon + arguments, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["step"] == 3
    assert any("train/total_loss" in r and float(r["train/total_loss"]) > 0 for r in records)
    assert "Classification" in (tmp_path / "run" / "summary.txt").read_text()


def run(path, arguments, tmp_path):
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    env = {**os.environ, "XLA_FLAGS": flags, "TFDS_DATA_DIR": str(tmp_path / "data")}
    get_config = importlib.import_module(f"configs.{path}").get_config
    # The held-out part of the recipe is longer than the few examples here.
    splits = {"dataset.train.split": "full[100:]", "dataset.val.split": "full[:100]"}
    # Eight images at once in every split: one routing group.
    batch_sizes = {
        f"dataset.{split}.batch_size": 4 if "two_views" in section.process else 8
        for split, section in get_config(arguments[1:]).dataset.items()
    }
    small = {
        "train_steps": 3,
        "dataset.train.shuffle_buffer": 16,
        "model.hidden_size": 32,
        "model.encoder.num_layers": 2,
        "model.encoder.moe.layers": "(1,)",
        "model.encoder.mlp_dim": 32,
        "model.encoder.num_heads": 4,
        "optimizer.learning_rate.warmup_steps": 1,
        **batch_sizes,
        **(splits if path == "imagenet21k_vmoe" else {}),
    }
    return subprocess.run(
        [
            *(sys.executable, "-m", "vmoe_prc.main", f"--workdir={tmp_path / 'run'}"),
            f"--config=configs/{path}.py{arguments}",
            *(f"--config.{name}={value}" for name, value in small.items()),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", digits_models.MOE)
def test_a_small_model_of_every_kind_takes_three_steps(tmp_path, model):
    command = [
        *(sys.executable, "-m", "vmoe_prc.main", f"--workdir={tmp_path / 'run'}"),
        f"--config=configs/digits_models.py:model={model}",
        *("--config.train_steps=3", "--config.optimizer.learning_rate.warmup_steps=1"),
    ]
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "XLA_FLAGS": flags}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "calibration/ece" in (tmp_path / "run" / "summary.txt").read_text()
