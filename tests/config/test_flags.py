"""Fields set on the command line."""

import pytest

from configs import digits_prc, imagenet_prc
from vmoe_prc.config import ConfigError, complete, override
from vmoe_prc.config.flags import split_config_flags


def with_flags(*flags, recipe=digits_prc):
    others, changes = split_config_flags(["main", *flags])
    assert others == ["main"]
    return complete(override(recipe.get_config(), changes))


def test_other_flags_are_left_alone():
    flags = ["--config=x.py", "--workdir", "w", "--config.seed", "3", "--", "--config.a=1"]
    others, changes = split_config_flags(["main", *flags])
    assert others == ["main", "--config=x.py", "--workdir", "w", "--", "--config.a=1"]
    assert changes == {"seed": "3"}


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.seed=7", 7),
        ("--config.ema_decay=0.5", 0.5),
        ("--config.description=None of these", "None of these"),
        ("--config.shard_dense_params", True),
        ("--noconfig.shard_dense_params", False),
        ("--config.optimizer.weight_decay=0.1", 0.1),
        ("--config.optimizer.weight_decay=[('.*/kernel', 0.2)]", ((".*/kernel", 0.2),)),
        ("--config.optimizer.weight_decay=None", None),
        ("--config.optimizer.gradient_clip.global_norm=None", None),
        ("--config.optimizer.frozen_pattern=[aA]b|cls", "[aA]b|cls"),
        ("--config.optimizer.frozen_pattern=('a', 'b')", ("a", "b")),
        ("--config.dataset.train.prefetch=4", 4),
        ("--config.dataset.train.prefetch=autotune", "autotune"),
        ("--config.model.encoder.moe.layers=(0,)", (0,)),
    ],
)
def test_values_have_the_types_of_their_fields(flag, expected):
    off = () if "layers" not in flag else ("--config.consistency=None",)
    value = with_flags(flag, *off)
    for key in flag.lstrip("-").removeprefix("no").partition("=")[0].split(".")[1:]:
        value = value[key]
    assert value == expected and type(value) is type(expected)


def test_sections_are_switched_on_and_off():
    on = with_flags("--config.mixup.concentration=0.2", "--config.consistency=None")
    assert (on.mixup.concentration, on.mixup.size, on.consistency) == (0.2, 2, None)
    profile = with_flags("--config.profile.num_profile_steps=3").profile
    assert (profile.first_profile, profile.num_profile_steps) == (10, 3)
    assert with_flags("--config.profile.first_profile=9", "--config.profile=None").profile is None


def test_variants_are_chosen_with_their_options():
    sgd = with_flags("--config.optimizer.momentum=0.9", "--config.optimizer.name=sgd").optimizer
    assert sgd.momentum == 0.9 and "b1" not in sgd
    assert sgd.weight_decay == ((".*/kernel", 0.1),)
    constant = with_flags(
        "--config.optimizer.learning_rate.schedule=constant",
        "--config.optimizer.learning_rate.value=0.1",
    )
    assert constant.optimizer.learning_rate.to_dict() == {"schedule": "constant", "value": 0.1}
    router = with_flags("--config.model.encoder.moe.router.name=NoisyTopItemsPerExpertRouter")
    assert "num_selected_experts" not in router.model.encoder.moe.router
    assert router.model.encoder.moe.router.dispatcher.capacity_factor == 1.5
    l2 = with_flags("--config.consistency.name=l2", "--config.consistency.weight=1").consistency
    assert l2.weight == 1.0 and "diagonal" not in l2


def test_splits_are_added_and_taken_away():
    fields = ("name=digits", "split=train[:10%]", "batch_size=8", "process=decode")
    config = with_flags(
        "--config.dataset.test_pairs=None", *(f"--config.dataset.val.{field}" for field in fields)
    )
    assert list(config.dataset) == ["test", "train", "val"]
    assert config.dataset.val.batch_size == 8


def test_values_under_names_have_the_type_of_the_mapping():
    """Also of new names: of few-shot data sets, of which V-MoE names three parts."""
    process = 'decode|resize(32)|value_range(-1, 1)|keep("image", "label")'
    flags = [f"--config.fewshot.process={process}", "--config.fewshot.batch_size=8"]
    flags += ["--config.fewshot.datasets.pets=('oxford_iiit_pet','train','test')"]
    flags += ["--config.fewshot.datasets.cars=['cars196', 'train[:50%]', 'test']"]
    flags += ["--config.fewshot.datasets.uc='uc_merced', 'train', 'val', 'test'"]
    datasets = with_flags(*flags).fewshot.datasets
    assert datasets.to_dict() == {
        "pets": ("oxford_iiit_pet", "train[:90%]", "train[90%:]", "test"),
        "cars": ("cars196", "train[:45%]", "train[45%:50%]", "test"),
        "uc": ("uc_merced", "train", "val", "test"),
    }
    _, changes = split_config_flags(["--config.fewshot.datasets.uc=None"])
    kept = complete(override(with_flags(*flags), changes)).fewshot.datasets
    assert set(kept) == {"pets", "cars"}
    for wrong in ("pets", "('pets', 'train')", "('pets', 'train[9:]', 'test')", "(1, 2, 3)"):
        with pytest.raises(ConfigError, match=r"fewshot.datasets.*expected.*validation"):
            with_flags(*flags, f"--config.fewshot.datasets.x={wrong}")


def test_a_length_in_steps_replaces_one_in_epochs():
    config = with_flags("--config.train_steps=20000", recipe=imagenet_prc)
    assert (config.train_steps, config.train_epochs) == (20_000, None)
    config = with_flags("--config.train_epochs=2")
    assert (config.train_steps, config.train_epochs) == (None, 2.0)


def test_the_model_of_evaluation_is_overridden_by_values_of_the_right_type():
    flag = "--config.evaluate.model_overrides.encoder.moe.router.dispatcher.capacity_factor=2"
    overrides = with_flags(flag, "--config.evaluate.model_overrides.dtype=bfloat16")
    assert overrides.evaluate.model_overrides.to_dict() == {
        "dtype": "bfloat16",
        "encoder": {"moe": {"router": {"dispatcher": {"capacity_factor": 2.0}}}},
    }


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.sede=1", r"config.sede = '1': unknown field; .* did you mean 'seed'\?"),
        ("--config.train-steps=1", r"train-steps = '1': unknown field; .*mean 'train_steps'\?"),
        ("--config.seed=x", "config.seed = 'x': expected int"),
        ("--config.seed=", "config.seed = '': expected int"),
        ("--config.seed=None", "config.seed = None: expected int"),
        ("--config.seed.x=1", "config.seed = .*: expected int"),
        ("--config.mixup.x=", "config.mixup.x = '': unknown field; allowed: concentration"),
        ("--config.mixup=0.2", "config.mixup = 0.2: expected a group of fields"),
        ("--config.train_steps=None", "config.train_steps = None: missing"),
        ("--config.optimizer.momentum=0.9", "config.optimizer.momentum = '0.9': unknown field"),
        ("--config.optimizer.learning_rate=1", r"expected a group of fields: schedule \(one of"),
        ("--config.model.encoder.moe.layers[0]=1", r"layers\[0\] = '1': unknown .*mean 'layers'"),
        ("--config.a..b=1", "'--config.a..b=1': expected --config.section.field=value"),
    ],
)
def test_mistakes_name_the_field(flag, message):
    with pytest.raises(ConfigError, match=message):
        with_flags(flag)
