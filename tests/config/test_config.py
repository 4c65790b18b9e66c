"""The schema: every mistake gets one line that names the field and what is allowed."""

import copy

import ml_collections
import numpy as np
import pytest

from benchmarks.fuzz_configs import all_paths
from configs import digits_prc, imagenet_prc
from vmoe_prc.config import (
    ConfigError,
    check_batch,
    complete,
    evaluation_model,
    fields,
    override,
    parse_arguments,
)
from vmoe_prc.config.checks import AGREEMENT_METRICS
from vmoe_prc.evaluation.agreement import METRICS, PARTS, SETS


def make(path=None, value=None, delete=False, arguments=""):
    """The digits config, with one field changed or left out."""
    config = digits_prc.get_config(arguments).to_dict()
    if path:
        *sections, name = path.split(".")
        section = config
        for key in sections:
            section = section[key]
        if delete:
            del section[name]
        else:
            section[name] = value
    return config


def test_completing_is_idempotent():
    config = digits_prc.get_config()
    assert complete(config).to_dict() == config.to_dict()


def test_defaults_are_filled_in():
    config = make("model.classifier", delete=True)
    assert complete(config).model.classifier == "token"
    assert complete(make("seed", delete=True)).seed == 0


def test_the_given_config_is_not_changed():
    config = make("seed", delete=True)
    before = copy.deepcopy(config)
    complete(config)
    assert config == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sead", 1, "config.sead = 1: unknown field; .*did you mean 'seed'"),
        ("model.hiden_size", 1, "config.model.hiden_size = 1: .*did you mean 'hidden_size'"),
        ("model.hidden_size", "64", "config.model.hidden_size = '64': expected int"),
        ("model.hidden_size", 0, "expected int from 1 to"),
        ("model.hidden_size", 66, "num_heads = 4: must divide hidden_size = 66"),
        ("model.patch_size", 4, r"config.model.patch_size = 4: expected \(height, width\)"),
        ("model.patch_size", (4,), r"expected \(height, width\)"),
        ("model.classifier", "tokn", "expected one of token, gap, map; did you mean 'token'"),
        ("model.dtype", "float16", "expected one of float32, bfloat16"),
        ("model.encoder.dropout_rate", 1.5, "expected float from 0 to 1"),
        ("model.encoder.moe.layers", (1, 4), "expected block numbers from 0 to 3"),
        ("model.encoder.moe.router.num_selected_experts", 5, "must not exceed num_experts = 4"),
        (
            "model.encoder.moe.router.importance_loss_weight",
            0.1,
            "has moved to config.auxiliary_loss.importance_loss_weight",
        ),
        ("model.encoder.moe.router.dispatcher.name", "gathr", "did you mean 'gather'"),
        ("model.encoder.moe.router.dispatcher.capacity_factor", 0, "expected float above 0"),
        ("optimizer.name", "adamw", "expected one of adafactor, adam, sgd; did you mean 'adam'"),
        ("optimizer.momentum", 0.9, "config.optimizer.momentum = 0.9: unknown field"),
        ("optimizer.learning_rate.schedule", "cosine", "expected one of .*warmup_cosine_decay"),
        ("optimizer.weight_decay", [("(", 0.1)], "not a regular expression"),
        ("optimizer.weight_decay", [("kernel",)], r"expected .*tuple of \(str, float\)"),
        ("optimizer.frozen_pattern", "[", "not a regular expression"),
        ("optimizer.gradient_clip.absolute_value", 1.0, "optimizer.gradient_clip = .*not both"),
        ("train_steps", None, "missing; give it, or config.train_epochs"),
        ("loss.name", "softmax", "did you mean 'softmax_xent'?"),
        ("consistency.name", "barlow", r"expected one of .*jsd, l2, .*prc"),
        ("consistency.diagonal", "trace", "expected one of matrix, per_position"),
        ("consistency.pairs", "shuffled", "expected one of matched, random"),
        ("consistency.stop_gradient", "view2", "expected one of None, view0, view1"),
        ("consistency.blocks", (1, 2), r"expected blocks with experts, which are \(1, 3\)"),
        ("mixup", {"concentration": 0.2}, "must be None with config.consistency"),
        ("seed", True, "config.seed = True: expected int"),
        ("evaluate.model_overrides", {"encoder": {"mo": 1}}, "did you mean 'moe'"),
        ("save_checkpoint.keep_best", 1, "missing; keep_best needs it"),
        ("save_checkpoint.best_metric", "val/accuracy", "such as test/accuracy"),
        ("train_epochs", 2.0, "train_steps = 600: cannot be combined with config.train_epochs = 2"),
        ("optimizer.learning_rate.warmup_steps", 600, "warmup_steps = 600 must be less than"),
        ("save_checkpoint.best_metric", "test/acc", r"did you mean 'test/accuracy'\?"),
        ("save_checkpoint.best_metric", "test/encoderblock_1/top3", "expected a metric"),
        ("save_checkpoint.best_metric", "test/encoderblock_1/load/99", "expected a metric"),
        ("save_checkpoint.best_metric", "test/encoderblock_2/top1", "expected a metric"),
        (
            "dataset.a/b",
            digits_prc.get_config().dataset.test.to_dict(),
            r"config\.dataset = 'a/b': expected a name without",
        ),
        ("evaluators.a/b", {"name": "calibration"}, r"config\.evaluators = 'a/b': expected"),
        ("dataset.train.prefetch", "foo", "expected 'autotune' or int from 1 to 1000"),
        ("dataset.train.prefetch", -5, "expected 'autotune' or int from 1 to 1000"),
        ("model.representation_size", 0, "expected int or None from 1"),
        ("model.num_classes", -3, "expected int from 1"),
        ("model.hidden_size", 10**12, "expected int from 1 to"),
        ("seed", 10**30, "expected an int of at most 64 bits"),
        ("seed", 2**32, "expected int from 0 to 4294967295"),
        # Not even Python prints it.
        pytest.param("seed", 10**5000, "config.seed = an int of 16610 bits: expected", id="huge"),
        (
            "description",
            "x" * 20_000,
            r"'xx.*xx' \(20002 characters\): expected at most 10000 char",
        ),
        ("params_axis_resources", [("Moe", "expert")], r"expected pairs \(regex, \(axis or None"),
        ("params_axis_resources", [("(", ("expert",))], "not a regular expression"),
        ("params_axis_resources", "Moe", r"expected pairs \(regex, \(axis or None"),
        ("imports", "my_router", "expected tuple of str"),
        ("dataset", 3, "config.dataset = 3: expected sections"),
        ("dataset.test", 3, "config.dataset.test = 3: expected a group of fields"),
    ],
)
def test_errors(path, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        complete(make(path, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metric", ["kappa", "top1_low", "encoderblock_3/overlap_place", "encoderblock_1/load/2"]
)
def test_every_metric_of_a_split_can_choose_checkpoints(metric):
    complete(make("save_checkpoint.best_metric", f"test_pairs/{metric}"))


def test_metrics_of_agreement_are_those_of_evaluation():
    parts = [*PARTS, *(f"{SETS}{part}" for part in PARTS)]
    assert [*METRICS, *parts] == list(AGREEMENT_METRICS)


@pytest.mark.parametrize("path", ["model", "dataset.train", "optimizer.name", "model.num_classes"])
def test_missing_fields_are_named(path):
    with pytest.raises(ConfigError, match="missing"):
        complete(make(path, delete=True))


def test_no_field_takes_a_number_that_is_not_finite():
    config = digits_prc.get_config().to_dict()
    numbers = [
        path
        for path, field in all_paths(config, fields.Config)
        if "float" in str(field.hint) and field.section is None
    ]
    assert len(numbers) > 20
    for path in numbers:
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(ConfigError) as error:
                complete(override(config, nested(path, value)))
            # A section that is off also lacks its required fields.
            known = path if config[path[0]] is not None else path[:1]
            assert error.value.field.startswith(".".join(("config", *known)))


def nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


def test_numbers_of_numpy_are_numbers():
    config = complete(make("optimizer.weight_decay", np.float32(0.5)))
    assert type(config.optimizer.weight_decay) is float
    assert type(complete(make("seed", np.int64(3))).seed) is int


def test_class_tokens_need_a_class_token():
    config = make("consistency.pair_class_tokens", True)
    config["model"]["classifier"] = "gap"
    with pytest.raises(ConfigError, match=r"needs config\.model\.classifier = 'token'"):
        complete(config)


@pytest.mark.parametrize(
    ("path", "value", "shape", "message"),
    [
        ("seed", 0, (32, 2, 30, 30, 3), r"patch_size = \(4, 4\): must divide the 30x30 images"),
        ("seed", 0, (31, 2, 32, 32, 3), "train.batch_size = 31: must be a multiple of 2 devices"),
        ("microsteps", 32, (32, 2, 32, 32, 3), "a multiple of 2 devices x 32 microsteps"),
        (
            "model.encoder.moe.group_size",
            100,
            (32, 2, 32, 32, 3),
            "group_size = 100: must divide the tokens of a device .* 64 images x 65 tokens / 2",
        ),
        ("seed", 0, (64, 32, 32, 3), "config.consistency = 'prc': needs two views"),
        (
            "model.num_classes",
            5,
            (32, 2, 32, 32, 3),
            "num_classes = 5: expected the 10 classes of the labels in config.dataset.train",
        ),
    ],
)
def test_batches_that_do_not_fit(path, value, shape, message):
    config = complete(make(path, value))
    with pytest.raises(ConfigError, match=message):
        check_batch(config, "dataset.train", shape, num_devices=2, num_classes=10)


@pytest.mark.parametrize("granularity", ["batch", "device", "example"])
def test_mixup_needs_enough_images(granularity):
    config = make("mixup", {"concentration": 0.2, "size": 3, "granularity": granularity})
    config["consistency"] = None
    with pytest.raises(ConfigError, match=r"config.mixup.size = 3: expected at most 2"):
        check_batch(complete(config), "dataset.train", (4, 32, 32, 3), num_devices=2)


def test_position_embeddings_need_a_width():
    config = make("model.encoder", {**make()["model"]["encoder"], "num_heads": 2})
    config["model"] |= {"hidden_size": 18}
    config["model"]["encoder"]["position_emb"] = {"name": "sincos2d"}
    with pytest.raises(ConfigError, match=r"model.hidden_size = 18: must be a multiple of 4"):
        complete(config)


def test_batches_that_fit():
    config = complete(make())
    check_batch(config, "dataset.train", (32, 2, 32, 32, 3), num_devices=8)
    check_batch(config, "dataset.test", (64, 32, 32, 3), num_devices=8)


def test_evaluation_overrides_the_model():
    config = digits_prc.get_config()
    dispatcher = evaluation_model(config)["encoder"]["moe"]["router"]["dispatcher"]
    assert dispatcher["capacity_factor"] == 4.0
    assert dispatcher["name"] == "gather"
    assert config.model.encoder.moe.router.dispatcher.capacity_factor == 1.5


def test_parse_arguments():
    args = parse_arguments("k=1,prc=off, lr=1e-3", k=2, prc=True, lr=0.1, name="x")
    assert args == ml_collections.ConfigDict({"k": 1, "prc": False, "lr": 1e-3, "name": "x"})
    for text in ("name='my, photos',k=1", 'name="my, photos",k=1'):
        assert parse_arguments(text, name="", k=2).to_dict() == {"name": "my, photos", "k": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prk=on", "config argument 'prk' = 'on': unknown; allowed: k, prc; did you mean 'prc'"),
        ("k=two", "config argument 'k' = 'two': expected int"),
        ("prc=no", "config argument 'prc' = 'no': expected one of on"),
        ("k", "config argument 'k' = '': expected int"),
        ("K=1", "'K' = '1': unknown; allowed: k, prc; did you mean 'k'"),
        ("k=1, 2", "'2' = '': unknown; allowed: k, prc; put a value with a comma in quotes"),
    ],
)
def test_argument_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments(text, k=2, prc=True)


@pytest.mark.parametrize("arguments", ["", "k=1", "prc=off", "k=1,prc=off,seed=3"])
@pytest.mark.parametrize("module", [digits_prc, imagenet_prc])
def test_configs_are_valid_with_all_arguments(module, arguments):
    config = module.get_config(arguments)
    prc, k = "prc=off" not in arguments, 1 if "k=1" in arguments else 2
    assert (config.consistency is not None) == prc
    assert config.model.encoder.moe.router.num_selected_experts == k
    assert config.auxiliary_loss.importance_loss_weight == (0.0 if prc else 5e-3)


def test_overrides_keep_the_fields_that_they_do_not_name():
    changed = override(make(), {"model": {"encoder": {"moe": {"num_experts": 8}}}, "seed": 3})
    expected = make("model.encoder.moe.num_experts", 8)
    expected["seed"] = 3
    assert complete(changed).to_dict() == complete(expected).to_dict()


def test_overrides_that_choose_a_variant_drop_the_fields_of_the_other():
    config = make("consistency.pair_class_tokens", True)
    changed = complete(override(config, {"consistency": {"name": "l2", "weight": 0.1}}))
    assert changed.consistency.weight == 0.1 and "diagonal_weight" not in changed.consistency
    assert changed.consistency.pair_class_tokens
    sgd = {"optimizer": {"name": "sgd", "learning_rate": {"schedule": "constant", "value": 0.1}}}
    optimizer = complete(override(config, sgd)).optimizer
    assert optimizer.learning_rate.to_dict() == {"schedule": "constant", "value": 0.1}
    assert optimizer.weight_decay == make()["optimizer"]["weight_decay"]


def test_overrides_take_sections_away_and_put_them_in():
    config = complete(override(make(), {"consistency": None}))
    assert config.consistency is None
    splits = override(config, {"dataset": {"test_pairs": None, "val": config.dataset.test}})
    assert list(complete(splits).dataset) == ["test", "train", "val"]
    back = complete(override(config, {"consistency": {"name": "prc"}}))
    assert back.consistency.diagonal_weight == 5e-3
    with pytest.raises(ConfigError, match=r"config\.model\.hiden_size"):
        complete(override(config, {"model": {"hiden_size": 3}}))
