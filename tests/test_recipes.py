"""The recipes of the papers, as configurations."""

import re

import jax
import jax.numpy as jnp
import pytest
from format_files import NAMES, write_arrays

from configs import (
    cifar10_vmoe,
    cifar100_eee,
    cifar_prc,
    digits_models,
    digits_prc,
    fashion_mnist_prc,
    flowers_prc,
    folder_prc,
    imagenet21k_vmoe,
    imagenet_finetune_prc,
    imagenet_finetune_vmoe,
    imagenet_prc,
    imagenet_vmoe,
    pets_prc,
    photos_prc,
    places_prc,
    soft_moe,
)
from vmoe_prc.config import ConfigError, NotPreparedError, evaluation_model
from vmoe_prc.config.files import read_config_file
from vmoe_prc.models import create_model
from vmoe_prc.recipes.sizes import derive_sizes

FINE_TUNES = [
    (cifar_prc, "dataset=cifar10", 10, 128),
    (cifar_prc, "dataset=cifar100", 100, 128),
    (flowers_prc, "", 102, 224),
    (pets_prc, "", 37, 128),
    (imagenet_finetune_prc, "", 1000, 384),
]


@pytest.mark.parametrize(("recipe", "arguments", "classes", "size"), FINE_TUNES)
@pytest.mark.parametrize("prc", ["on", "off"])
def test_both_arms_of_a_fine_tune_see_1024_images_a_step(recipe, arguments, classes, size, prc):
    config = recipe.get_config(f"{arguments},k=1,prc={prc},seed=3")
    train = config.dataset.train
    assert train.batch_size * (2 if prc == "on" else 1) == 1024
    assert ("two_views" in train.process) == (prc == "on") == bool(config.consistency)
    assert config.auxiliary_loss.importance_loss_weight == (0 if prc == "on" else 5e-3)
    assert config.model.num_classes == classes
    assert config.model.encoder.moe.group_size == 8 * ((size // 32) ** 2 + 1)
    assert config.model.encoder.moe.router.num_selected_experts == 1
    assert f"resize({size}, truncate=True)" in config.dataset.test.process
    assert config.seed == 3
    # As in the released programs of V-MoE and PRC, also in evaluation.
    dispatcher = evaluation_model(config)["encoder"]["moe"]["router"]["dispatcher"]
    assert dispatcher["capacity_factor"] == 1.5


@pytest.fixture
def folder(tmp_path):
    for name in ("train/x/1.jpg", "train/y/1.jpg", "train/z/1.jpg", "test/x/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("prc", ["on", "off"])
def test_every_recipe_takes_the_same_arguments(folder, prc, k):
    recipes = [(recipe, arguments) for recipe, arguments, *_ in FINE_TUNES]
    recipes += [(r, "") for r in (digits_prc, fashion_mnist_prc, imagenet_prc, imagenet21k_vmoe)]
    recipes += [(recipe, f"dir={folder}") for recipe in (folder_prc, photos_prc)]
    recipes += [(places_prc, "dataset=clutter"), (places_prc, "dataset=photos")]
    for recipe, arguments in recipes:
        config = recipe.get_config(f"{arguments},prc={prc},k={k},seed=5")
        assert config.model.encoder.moe.router.num_selected_experts == k
        assert f"K={k}" in config.description
        assert bool(config.consistency) == (prc == "on")
        assert ("two_views" in config.dataset.train.process) == (prc == "on")
        assert config.seed == 5


def test_vmoe_b16_has_experts_in_every_second_block():
    config = imagenet21k_vmoe.get_config()
    assert config.model.encoder.moe.layers == (1, 3, 5, 7, 9, 11)
    assert config.mixup.concentration == 0.5
    assert imagenet21k_vmoe.get_config("prc=on").dataset.train.batch_size == 2048
    huge = imagenet21k_vmoe.get_config("backbone=H/14,experts=32,last=5").model
    assert (huge.patch_size, huge.hidden_size) == ((14, 14), 1280)
    assert huge.encoder.moe.num_experts == 32
    assert huge.encoder.moe.layers == (23, 25, 27, 29, 31)


@pytest.mark.parametrize("recipe", [folder_prc, photos_prc])
def test_a_folder_gives_its_classes(folder, recipe):
    config = recipe.get_config(f"dir={folder},size=96")
    assert config.model.num_classes == 3
    assert config.dataset.test_pairs.manual_dir == str(folder)


def test_reading_a_recipe_writes_nothing(tmp_path):
    """The program that trains prepares, once its processes have met."""
    files, data_dir = tmp_path / "my files", tmp_path / "data"
    files.mkdir()
    write_arrays(files)
    source = f"photos_prc:dataset=arrays,dir={files},data_dir={data_dir}"
    command = f"run `python -m vmoe_prc.data.prepare arrays '--from={files}' --data-dir={data_dir}`"
    with pytest.raises(NotPreparedError, match=re.escape(command)):
        read_config_file(source, "--config")
    assert not data_dir.exists()
    config = read_config_file(source, "--config", prepare=True)
    assert config.model.num_classes == len(NAMES)
    assert read_config_file(source, "--config") == config


@pytest.mark.parametrize("prc", ["on", "off"])
@pytest.mark.parametrize("recipe", [folder_prc, photos_prc])
def test_sizes_follow_from_the_number_of_photos(tmp_path, recipe, prc):
    """300 photos need no flags; `steps` and flags of fields change what is derived."""
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
        for i in range(100):
            (tmp_path / name / f"{i}.jpg").touch()
    config = recipe.get_config(f"dir={tmp_path},prc={prc}")
    pairs = 2 if prc == "on" else 1
    assert config.dataset.train.batch_size * pairs == 64
    assert config.dataset.test_pairs.batch_size * 2 == config.dataset.test.batch_size == 32
    assert config.train_steps == (600 if recipe is photos_prc else 500)
    assert config.evaluate.every_steps == config.save_checkpoint.every_steps
    assert f" training images: 64 views a step, {config.train_steps} steps" in config.note
    assert config.evaluators.mistakes.name == "mistakes"
    fewer = recipe.get_config(f"dir={tmp_path},prc={prc},steps=40")
    assert (fewer.train_steps, fewer.optimizer.learning_rate.warmup_steps) == (40, 4)


@pytest.mark.parametrize(
    ("images", "views", "steps"),
    [(3, 16, 500), (300, 64, 500), (50_000, 1024, 4_900), (10_000_000, 1024, 20_000)],
)
def test_sizes(images, views, steps):
    sizes = derive_sizes(
        images,
        images // 10,
        views_per_image=100,
        most_views=1024,
        least_steps=500,
        most_steps=20_000,
    )
    assert (sizes.views_per_step, sizes.steps) == (views, steps)
    assert 0 < sizes.report_every <= sizes.evaluate_every <= min(steps, 1000)
    assert 16 <= sizes.test_views <= 1024


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (cifar_prc, "dataset=cifar01", "did you mean 'cifar1"),
        (folder_prc, "", "is not a directory"),
        (folder_prc, "dir=/no/such/place", "is not a directory"),
        (photos_prc, "size=100", "must be a multiple of 8"),
        (places_prc, "dataset=faces", "expected one of clutter, photos"),
        (places_prc, "dataset=photos,dir=/photos", "classes=N"),
    ],
)
def test_wrong_arguments(recipe, arguments, message):
    with pytest.raises(ConfigError, match=message):
        recipe.get_config(arguments)


def test_the_diagonal_of_the_released_program_is_an_argument():
    for recipe in (digits_prc, cifar_prc, imagenet_prc, imagenet_finetune_prc):
        assert recipe.get_config("diagonal=per_position").consistency.diagonal == "per_position"
        assert recipe.get_config().consistency.diagonal == "matrix"
    with pytest.raises(ConfigError, match=r"diagonal = 'rows': expected one of matrix"):
        digits_prc.get_config("diagonal=rows")


def test_vmoes_own_recipe_mixes_images_and_prcs_baseline_does_not():
    own, baseline = imagenet_vmoe.get_config(), imagenet_prc.get_config("prc=off")
    assert own.model == baseline.model
    assert (own.mixup.concentration, baseline.mixup) == (0.2, None)
    assert (own.dataset.train.batch_size, baseline.dataset.train.batch_size) == (8192, 1024)


def test_the_baseline_of_prc_or_that_of_vmoe():
    assert imagenet_prc.get_config("prc=off,baseline=vmoe,k=1") == imagenet_vmoe.get_config("k=1")
    own = imagenet_finetune_prc.get_config("prc=off,baseline=vmoe,others=on")
    assert own == imagenet_finetune_vmoe.get_config("others=on")
    assert own.train_steps == 10_000
    for arguments, message in (
        ("baseline=vmoe", "needs prc=off"),
        ("baseline=prc", "expected one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            imagenet_prc.get_config(arguments)


def test_other_tests_of_imagenet_are_optional():
    for recipe in (imagenet_vmoe, imagenet_finetune_vmoe, imagenet_finetune_prc):
        assert "imagenet_real" not in recipe.get_config().dataset
        config = recipe.get_config("others=on")
        assert config.dataset.imagenet_a.name == "imagenet_a"
        assert 'inkey="real_label"' in config.dataset.imagenet_real.process


def test_prc_chooses_the_identity_and_vmoe_does_not():
    assert 'randaug(2, 10, variant="prc")' in imagenet_prc.get_config().dataset.train.process
    assert "randaug(2, 10)|" in imagenet_vmoe.get_config().dataset.train.process


def test_fine_tunings_of_vmoe():
    config = imagenet_finetune_vmoe.get_config("model=b16")
    assert config.model.encoder.moe.layers == (1, 3, 5, 7, 9, 11)
    assert config.model.encoder.moe.group_size == 8 * (24**2 + 1)
    small = cifar10_vmoe.get_config()
    assert (small.train_steps, small.optimizer.learning_rate.peak_value) == (1_000, 1.5e-3)
    for recipe in (config, small):
        dispatcher = recipe.model.encoder.moe.router.dispatcher
        assert (dispatcher.capacity_factor, dispatcher.bfloat16) == (1.5, True)


def test_the_ensemble_of_experts():
    config = cifar100_eee.get_config("seed=4")
    moe = config.model.encoder.moe
    assert (moe.ensemble_size, moe.num_experts, moe.group_size) == (2, 8, 2 * 128 * 17)
    assert config.loss.to_dict()["ensemble_size"] == 2
    assert config.model.representation_size == 512
    assert [rule[-1] for rule in config.initialization.rules[1:3]] == ["vit_zoom", "reshape"]


def test_soft_moe_by_name():
    soft, expert_choice, dense = (
        soft_moe.get_config(f"model={name}-h14").model.encoder.moe for name in ("soft", "ec", "vit")
    )
    assert (soft.num_experts, soft.group_size, soft.router.num_slots) == (256, 256, 1)
    assert soft.layers == expert_choice.layers == tuple(range(16, 32))
    assert expert_choice.router.dispatcher.capacity_multiple_of == 1
    assert dense.layers == ()
    assert soft_moe.get_config("model=soft-s16").optimizer.weight_decay[-1][1] == 0.03
    with pytest.raises(ConfigError, match="expected 'soft-s16'"):
        soft_moe.get_config("model=soft-x16")


@pytest.mark.parametrize("name", digits_models.MOE)
def test_small_models_of_every_kind(name):
    model = create_model(digits_models.get_config(f"model={name}").model, deterministic=False)
    keys = {key: jax.random.key(0) for key in ("params", "gating", "dropout")}
    images = jnp.zeros((8, 32, 32, 3))
    params = jax.eval_shape(model.init, keys, images)["params"]
    assert ("Moe" in params["Encoder"]["encoderblock_3"]) == (name != "dense")
