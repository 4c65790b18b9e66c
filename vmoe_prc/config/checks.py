"""Checks across fields, and of a configuration against its images and devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_prc.config.derived import EVALUATION_MODEL, Config, evaluation_model
from vmoe_prc.config.errors import ConfigError, check_regex, nearest
from vmoe_prc.config.metric_names import FEWSHOT, MetricName, parse_name
from vmoe_prc.config.registry import CLASSIFICATION_LOSSES, DISPATCHERS, ROUTERS, SCHEDULES
from vmoe_prc.config.values import plain

# Metrics of every split that is evaluated.
SPLIT_METRICS = ("accuracy", "loss")
# Metrics of blocks, and of all of them together, of splits with two views.
_PARTS = ("chance", "image", "place", "kappa", "kappa_place")
AGREEMENT_METRICS = (
    *("top1", "top2", "top2_unordered", "overlap"),
    *_PARTS,
    *(f"overlap_{part}" for part in _PARTS),
)
# Rows of the experts' buffers are counted by an int32.
_INT32 = 2**31 - 1


def check_across(config: Mapping[str, Any]) -> None:
    """Checks fields against each other.

    Args:
      config: A configuration whose fields have each been checked.

    Raises:
      ConfigError: For the first field that is at odds with another one.
    """
    _check_length(config)
    _check_datasets(config)
    _check_model(config["model"], "config.model")
    _check_model(evaluation_model(config), EVALUATION_MODEL)
    _check_ensemble(config)
    _check_partitions(config)
    _check_optimizer(config["optimizer"])
    _check_two_views(config)
    _check_fewshot(config["fewshot"])
    for regex, _ in config["params_axis_resources"]:
        check_regex("config.params_axis_resources", regex)


def check_batch(
    config: Config,
    section: str,
    image_shape: Sequence[int],
    num_devices: int,
    num_classes: int | None = None,
) -> None:
    """Checks that the images of a split fit the model, its groups and the devices.

    Args:
      config: A completed configuration.
      section: Where the configuration has the data, such as 'dataset.train' or 'fewshot'.
      image_shape: Shape of the global batch: (B, H, W, 3), or (B, 2, H, W, 3).
      num_devices: Devices of all hosts.
      num_classes: Classes of the one-hot labels, None if there are none.

    Raises:
      ConfigError: If the labels have other classes than the head, the image does not split
        into patches, the batch over the devices, or the tokens of the devices into groups.
    """
    train = section == "dataset.train"
    model = config["model"] if train else evaluation_model(config)
    *views, height, width, _ = image_shape[1:]
    batch_size = image_shape[0]
    field = f"config.{section}.batch_size"
    if num_classes is not None and num_classes != model["num_classes"]:
        raise ConfigError(
            "config.model.num_classes",
            model["num_classes"],
            f"expected the {num_classes} classes of the labels in config.{section}.process",
        )
    patch_height, patch_width = model["patch_size"]
    if height % patch_height or width % patch_width:
        raise ConfigError(
            "config.model.patch_size",
            (patch_height, patch_width),
            f"must divide the {height}x{width} images of config.{section}.process",
        )
    microsteps = config["microsteps"] if train else 1
    if batch_size % (num_devices * microsteps):
        raise ConfigError(
            field,
            batch_size,
            f"must be a multiple of {num_devices} devices x {microsteps} microsteps",
        )
    if train and config["mixup"]:
        _check_mixup(config["mixup"], batch_size // microsteps, num_devices)
    if train and config["consistency"] and not views:
        raise ConfigError(
            "config.consistency",
            config["consistency"]["name"],
            "needs two views of each image: config.dataset.train.process lacks two_views(...)",
        )
    moe = model["encoder"]["moe"]
    if moe["layers"]:
        patches = (height // patch_height) * (width // patch_width)
        tokens = patches + (model["classifier"] == "token")
        images = batch_size * (2 if views else 1) // microsteps * moe["ensemble_size"]
        if images * tokens * moe["num_experts"] > _INT32:
            raise ConfigError(
                field, batch_size, f"{images:,} images of {tokens} tokens are more than fit a step"
            )
        if images * tokens % (moe["group_size"] * num_devices):
            raise ConfigError(
                "config.model.encoder.moe.group_size",
                moe["group_size"],
                f"must divide the tokens of a device in config.{section}: {images} "
                f"images x {tokens} tokens / {num_devices} devices = "
                f"{images * tokens / num_devices:g}",
            )


def _check_mixup(mixup: Config, num_images: int, num_devices: int) -> None:
    if num_images // num_devices < mixup["size"]:
        raise ConfigError(
            "config.mixup.size",
            mixup["size"],
            f"expected at most {num_images // num_devices}, the images of a device",
        )


def _check_length(config: Mapping[str, Any]) -> None:
    steps, epochs = config["train_steps"], config["train_epochs"]
    if steps is None and epochs is None:
        raise ConfigError("config.train_steps", None, "missing; give it, or config.train_epochs")
    if steps is not None and epochs is not None:
        expected = f"cannot be combined with config.train_epochs = {epochs}; give one of them"
        raise ConfigError("config.train_steps", steps, expected)
    if steps is not None:
        check_schedule(config, steps)


def check_schedule(config: Config, total_steps: int) -> None:
    """Checks that the schedule of the learning rate fits a training of `total_steps`.

    Raises:
      ConfigError: If it does not, such as for a warm-up that is longer than the training.
    """
    options = plain(config["optimizer"]["learning_rate"])
    name = options.pop(SCHEDULES.key)
    try:
        SCHEDULES[name](SCHEDULES.options(name)(**options), total_steps)
    except ValueError as error:
        raise ConfigError("config.optimizer.learning_rate", name, str(error)) from None


def _check_datasets(config: Mapping[str, Any]) -> None:
    datasets = config["dataset"]
    for field in ("dataset", "evaluators"):
        for label in config[field]:
            if not label or "/" in label:
                expected = "expected a name without '/', which is between the parts of a metric's"
                raise ConfigError(f"config.{field}", label, expected)
    if "train" not in datasets:
        raise ConfigError("config.dataset.train", None, "missing; the split to train on")
    checkpoint = config["save_checkpoint"]
    if checkpoint["best_metric"] is not None:
        _check_best_metric(config, checkpoint["best_metric"])
    elif checkpoint["keep_best"]:
        raise ConfigError("config.save_checkpoint.best_metric", None, "missing; keep_best needs it")


def _check_best_metric(config: Mapping[str, Any], metric: str) -> None:
    """Checks that an evaluation gives a metric, as far as its name can tell."""
    name = parse_name(metric)
    if name.measure and name.group in config["evaluators"]:
        return
    fewshot = config["fewshot"] or {"datasets": (), "shots": ()}
    splits = [split for split in config["dataset"] if split != "train"]
    moe = config["model"]["encoder"]["moe"]
    blocks = [f"encoderblock_{layer}" for layer in moe["layers"]]
    usual = [MetricName(measure, split) for split in splits for measure in SPLIT_METRICS]
    allowed = [
        *usual,
        *(MetricName(measure, split) for split in splits for measure in AGREEMENT_METRICS),
        *(
            MetricName("shot", FEWSHOT, dataset=dataset, shots=shots)
            for dataset in fewshot["datasets"]
            for shots in fewshot["shots"]
        ),
        *(
            MetricName(measure, split, block)
            for split in splits
            for block in blocks
            for measure in ("dropped", *AGREEMENT_METRICS)
        ),
    ]
    loads = [
        MetricName("load", split, block, expert)
        for split in splits
        for block in blocks
        for expert in range(moe["num_experts"])
    ]
    bounds = [
        MetricName(measure, split, bound=bound)
        for split in splits
        for measure in AGREEMENT_METRICS
        for bound in ("low", "high")
    ]
    if name not in (*allowed, *loads, *bounds):
        near = nearest(metric, map(str, usual)) or nearest(metric, map(str, allowed))
        expected = f"expected a metric of an evaluation, such as {', '.join(map(str, allowed[:4]))}"
        raise ConfigError("config.save_checkpoint.best_metric", metric, expected, near)


def _check_model(model: Mapping[str, Any], field: str) -> None:
    encoder = model["encoder"]
    moe, num_layers = encoder["moe"], encoder["num_layers"]
    for layer in moe["layers"]:
        if layer >= num_layers:
            raise ConfigError(
                f"{field}.encoder.moe.layers",
                moe["layers"],
                f"expected block numbers from 0 to {num_layers - 1}",
            )
    if not moe["layers"]:
        return
    selected = moe["router"].get("num_selected_experts", 1)
    if selected > moe["num_experts"]:
        raise ConfigError(
            f"{field}.encoder.moe.router.num_selected_experts",
            selected,
            f"must not exceed num_experts = {moe['num_experts']}",
        )
    router = moe["router"]["name"]
    dispatcher = moe["router"].get("dispatcher")
    if dispatcher is None or not ROUTERS[router].experts_choose:
        return
    if not DISPATCHERS[dispatcher["name"]].has_capacity:
        raise ConfigError(
            f"{field}.encoder.moe.router.dispatcher.name",
            dispatcher["name"],
            f"has no capacity, which {router} needs; use 'gather'",
        )
    if dispatcher["batch_priority"]:
        raise ConfigError(
            f"{field}.encoder.moe.router.dispatcher.batch_priority",
            True,
            f"orders tokens that choose experts; with {router} experts choose tokens",
        )


def _check_ensemble(config: Mapping[str, Any]) -> None:
    """Checks that an ensemble is trained and evaluated as one."""
    model, loss = config["model"], config["loss"]
    members = model["encoder"]["moe"]["ensemble_size"]
    if loss.get("ensemble_size", members) != members:
        raise ConfigError(
            "config.loss.ensemble_size",
            loss["ensemble_size"],
            f"expected config.model.encoder.moe.ensemble_size = {members}",
        )
    if members == 1:
        return
    if config["consistency"]:
        raise ConfigError(
            "config.consistency",
            config["consistency"]["name"],
            "cannot be computed for an ensemble, whose members route independently",
        )
    average = model["ensemble_average"]
    if average != CLASSIFICATION_LOSSES.options(loss["name"]).ACTIVATION:
        raise ConfigError(
            "config.model.ensemble_average", average, f"does not fit config.loss {loss['name']!r}"
        )


def _check_partitions(config: Mapping[str, Any]) -> None:
    moe, partitions = config["model"]["encoder"]["moe"], config["num_expert_partitions"]
    if partitions == "auto":
        return  # It will divide them.
    if moe["layers"] and moe["num_experts"] % partitions:
        raise ConfigError(
            "config.num_expert_partitions",
            partitions,
            f"must divide config.model.encoder.moe.num_experts = {moe['num_experts']}; "
            "devices beyond the partitions hold copies of the experts",
        )


def _check_optimizer(optimizer: Mapping[str, Any]) -> None:
    for field in ("weight_decay", "gradient_scale"):
        rules = optimizer[field]
        for rule in rules if isinstance(rules, tuple) else ():
            check_regex(f"config.optimizer.{field}", rule[0])
    for field in ("frozen_pattern", "trainable_pattern"):
        patterns = optimizer[field]
        for pattern in (patterns,) if isinstance(patterns, str) else patterns or ():
            check_regex(f"config.optimizer.{field}", pattern)


def _check_two_views(config: Mapping[str, Any]) -> None:
    consistency = config["consistency"]
    if consistency and config["mixup"]:
        raise ConfigError(
            "config.mixup",
            config["mixup"],
            "must be None with config.consistency: mixed images show no single place",
        )
    layers = config["model"]["encoder"]["moe"]["layers"]
    if consistency and not set(consistency["blocks"] or ()) <= set(layers):
        raise ConfigError(
            "config.consistency.blocks",
            consistency["blocks"],
            f"expected blocks with experts, which are {layers}",
        )
    if consistency and consistency["pair_class_tokens"]:
        classifier = config["model"]["classifier"]
        if classifier != "token":
            raise ConfigError(
                "config.consistency.pair_class_tokens",
                True,
                f"needs config.model.classifier = 'token', which is {classifier!r}",
            )


def _check_fewshot(fewshot: Mapping[str, Any] | None) -> None:
    if fewshot is None:
        return
    for field in ("shots", "l2_regs"):
        if not fewshot[field]:
            raise ConfigError(f"config.fewshot.{field}", fewshot[field], "expected at least one")
