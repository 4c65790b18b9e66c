"""What a configuration may say: its fields, their defaults, and the checks across them.

A configuration is an `ml_collections.ConfigDict` in the vocabulary of V-MoE. `complete`
checks it against the schema below and fills in the defaults; `check_batch` adds what can
be known only once the images and devices are.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

Config = Mapping[str, Any] | ml_collections.ConfigDict


class ConfigError(ValueError):
    """A configuration value that cannot be used; its text is one line for the user.

    Args:
      field: Full dotted name of the field, such as `config.model.patch_size`.
      value: The offending value.
      expected: What is allowed there, in words.
      suggestion: A near value that is allowed, if there is one.
    """

    def __init__(self, field: str, value: Any, expected: str, suggestion: str | None = None):
        hint = f"; did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"{field} = {value!r}: {expected}{hint}")
        self.field, self.value = field, value
        self.expected, self.suggestion = expected, suggestion


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed word that `word` most likely misspells, or None."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return matches[0] if matches else None


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings under their full names, joined by dots."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    return {
        name: value
        for key, item in config.items()
        for name, value in flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }


REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Field:
    """One value of the configuration.

    Attributes:
      kind: Its type; a float may be written as an int, a tuple as a list.
      default: Its value if it is not given; `REQUIRED` if it must be.
      allowed: The values it may have; any, if empty.
      minimum: Smallest number allowed.
      maximum: Largest number allowed.
      above: Number that it must exceed.
    """

    kind: type | tuple[type, ...]
    default: Any = REQUIRED
    allowed: Sequence[Any] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of fields.

    Attributes:
      fields: The fields by their names.
      variants: Further fields, by the value that the field `key` has.
      key: Name of the field that chooses the variant.
      optional: Whether the section may be None, which is then its default.
    """

    fields: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    key: str = "name"
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Named:
    """Sections of one kind under names that the user chooses."""

    section: Section


_COUNT = {"kind": int, "minimum": 1}
_SHARE = {"kind": float, "minimum": 0.0, "maximum": 1.0}
_WEIGHT = {"kind": float, "minimum": 0.0}
_WARMUP = {
    "peak_value": Field(float, minimum=0.0),
    "end_value": Field(float, 0.0, minimum=0.0),
    "warmup_steps": Field(int, 0, minimum=0),
}

DATASET = Section(
    {
        "name": Field(str),
        "split": Field(str),
        "process": Field(str),
        "batch_size": Field(**_COUNT),
        "shuffle_buffer": Field(int, 0, minimum=0),
        "cache": Field((str, type(None)), None, allowed=(None, "loaded")),
        # Examples that cannot be read or decoded, after which a run stops.
        "max_bad_examples": Field(int, 100, minimum=0),
        "data_dir": Field((str, type(None)), None),
        "manual_dir": Field((str, type(None)), None),
        "prefetch": Field((int, str), "autotune"),
        "prefetch_device": Field(int, 2, minimum=1),
    }
)

DISPATCHER = Section(
    {
        "name": Field(str, "gather", allowed=("einsum", "gather", "dropless")),
        "capacity_factor": Field(float, 1.05, above=0.0),
        "batch_priority": Field(bool, False),
        "bfloat16": Field(bool, False),
    }
)

ROUTER = Section(
    {
        "name": Field(
            str,
            "NoisyTopExpertsPerItemRouter",
            allowed=("NoisyTopExpertsPerItemRouter", "NoisyTopItemsPerExpertRouter"),
        ),
        "noise_std": Field(float, 1.0, minimum=0.0),
        "dispatcher": DISPATCHER,
    },
    variants={
        "NoisyTopExpertsPerItemRouter": {"num_selected_experts": Field(**_COUNT, default=1)},
        "NoisyTopItemsPerExpertRouter": {},
    },
)

MODEL = Section(
    {
        "name": Field(str, "VisionTransformerMoe", allowed=("VisionTransformerMoe",)),
        "num_classes": Field(**_COUNT),
        "patch_size": Field(tuple),
        "hidden_size": Field(**_COUNT),
        "classifier": Field(str, "token", allowed=("token", "gap", "map")),
        "representation_size": Field((int, type(None)), None),
        "head_bias_init": Field(float, 0.0),
        "dtype": Field(str, "float32", allowed=("float32", "bfloat16")),
        "encoder": Section(
            {
                "num_layers": Field(**_COUNT),
                "mlp_dim": Field(**_COUNT),
                "num_heads": Field(**_COUNT),
                "dropout_rate": Field(**_SHARE, default=0.0),
                "attention_dropout_rate": Field(**_SHARE, default=0.0),
                "position_emb": Section(
                    {"name": Field(str, "learned", allowed=("learned", "sincos2d", "none"))},
                    variants={"sincos2d": {"temperature": Field(float, 10_000.0, above=0.0)}},
                ),
                "moe": Section(
                    {
                        "num_experts": Field(**_COUNT),
                        "layers": Field(tuple),
                        "group_size": Field(**_COUNT),
                        "dropout_rate": Field(**_SHARE, default=0.0),
                        "split_rngs": Field(bool, False),
                        "router": ROUTER,
                    }
                ),
            }
        ),
    }
)

CONSISTENCY = Section(
    {
        "name": Field(str, allowed=("prc", "l2", "jsd")),
        "pair_class_tokens": Field(bool, False),
        "pairs": Field(str, "matched", allowed=("matched", "random")),
        # The view that the other one is drawn to.
        "stop_gradient": Field((str, type(None)), None, allowed=(None, "view0", "view1")),
        # Numbers of the blocks that have the loss; all with experts if None.
        "blocks": Field((tuple, type(None)), None),
    },
    variants={
        "prc": {
            "diagonal_weight": Field(**_WEIGHT, default=5e-3),
            "off_diagonal_weight": Field(**_WEIGHT, default=5e-2),
            "diagonal": Field(str, "matrix", allowed=("matrix", "per_position")),
        },
        "l2": {"weight": Field(**_WEIGHT)},
        "jsd": {"weight": Field(**_WEIGHT)},
    },
    optional=True,
)

OPTIMIZER = Section(
    {
        "name": Field(str, allowed=("adam", "sgd")),
        "learning_rate": Section(
            {
                "schedule": Field(
                    str,
                    allowed=(
                        "big_vision_rsqrt",
                        "constant",
                        "warmup_cosine_decay",
                        "warmup_linear_decay",
                        "warmup_polynomial_decay",
                    ),
                )
            },
            variants={
                "constant": {"value": Field(float, minimum=0.0)},
                "warmup_cosine_decay": _WARMUP,
                "warmup_linear_decay": _WARMUP,
                "warmup_polynomial_decay": {
                    **_WARMUP,
                    "power": Field(float, 1.0, above=0.0),
                },
                "big_vision_rsqrt": {
                    "peak_value": Field(float, minimum=0.0),
                    "warmup_steps": Field(int, 0, minimum=0),
                    "timescale": Field(**_COUNT),
                    "cooldown_steps": Field(int, 0, minimum=0),
                },
            },
            key="schedule",
        ),
        "gradient_clip": Section(
            {
                "global_norm": Field((float, type(None)), None, above=0.0),
                "absolute_value": Field((float, type(None)), None, above=0.0),
            }
        ),
        "weight_decay": Field((float, tuple, type(None)), None),
        "frozen_pattern": Field((str, tuple, type(None)), None),
    },
    variants={
        "adam": {
            "b1": Field(**_SHARE, default=0.9),
            "b2": Field(**_SHARE, default=0.999),
            "eps": Field(float, 1e-8, above=0.0),
            "mu_dtype": Field(str, "float32", allowed=("float32", "bfloat16")),
        },
        "sgd": {"momentum": Field(**_SHARE, default=0.0), "nesterov": Field(bool, False)},
    },
)

SCHEMA = Section(
    {
        "description": Field(str, ""),
        "seed": Field(int, 0, minimum=0),
        # The length of the training; the epochs count where no steps are given.
        "train_steps": Field((int, type(None)), None, minimum=1),
        "train_epochs": Field((float, type(None)), None, above=0.0),
        "dataset": Named(DATASET),
        "model": MODEL,
        # Where the parameters come from: nothing, without a prefix.
        "initialization": Section(
            {
                "prefix": Field((str, type(None)), None),
                "rules": Field(tuple, (("^(.*)$", r"\1"),)),
                "raise_if_source_unmatched": Field(bool, True),
                "raise_if_target_unmatched": Field(bool, True),
            }
        ),
        "loss": Section(
            {
                "name": Field(str, allowed=("sigmoid_xent", "softmax_xent")),
                "label_smoothing": Field(**_SHARE, default=0.0),
            }
        ),
        "auxiliary_loss": Section(
            {
                "importance_loss_weight": Field(**_WEIGHT, default=0.0),
                "load_loss_weight": Field(**_WEIGHT, default=0.0),
                "gshard_loss_weight": Field(**_WEIGHT, default=0.0),
            }
        ),
        "consistency": CONSISTENCY,
        "optimizer": OPTIMIZER,
        "ema_decay": Field((float, type(None)), None, minimum=0.0, maximum=1.0),
        "microsteps": Field(**_COUNT, default=1),
        # Steps in a row whose loss or gradients are not finite, after which the run stops.
        "max_skipped_steps": Field(**_COUNT, default=10),
        "mixup": Section(
            {
                "concentration": Field(float, above=0.0),
                "size": Field(int, 2, minimum=2),
                "granularity": Field(str, "device", allowed=("batch", "device", "example")),
            },
            optional=True,
        ),
        # Devices that the experts of a layer are split over; the others hold copies.
        "num_expert_partitions": Field(**_COUNT, default=1),
        # Whether the kernels outside the experts are split over all devices.
        "shard_dense_params": Field(bool, False),
        "params_axis_resources": Field(tuple, (("Moe/Mlp/.*", ("expert",)),)),
        "evaluate": Section(
            {
                "every_steps": Field(**_COUNT, default=1000),
                "model_overrides": Field(Mapping, ml_collections.FrozenConfigDict()),
            }
        ),
        "save_checkpoint": Section(
            {
                "every_steps": Field(**_COUNT, default=1000),
                # The one before the last is for when the last is damaged.
                "keep_last": Field(**_COUNT, default=2),
                "keep_best": Field(int, 0, minimum=0),
                "best_metric": Field((str, type(None)), None),
            }
        ),
        # Ridge regressions on the frozen representations.
        "fewshot": Section(
            {
                # (TFDS name, training, validation and test split) by a name of one's own.
                "datasets": Field(Mapping),
                "process": Field(str),
                "batch_size": Field(**_COUNT),
                "shots": Field(tuple, (1, 5, 10, 25)),
                "l2_regs": Field(tuple, tuple(2.0**i for i in range(-10, 20))),
                "data_dir": Field((str, type(None)), None),
                "every_steps": Field(**_COUNT, default=25_000),
            },
            optional=True,
        ),
        # Further evaluators by a label, see `evaluation.evaluator`.
        "evaluators": Field(Mapping, ml_collections.FrozenConfigDict()),
        "report_progress": Section({"every_steps": Field(**_COUNT, default=100)}),
        "profile": Section(
            {
                "first_profile": Field(int, 10, minimum=2),
                "num_profile_steps": Field(**_COUNT, default=5),
            },
            optional=True,
        ),
    }
)

# Where V-MoE's configs keep what we keep elsewhere.
_ROUTER = "config.model.encoder.moe.router"
MOVED = {
    **{
        f"{_ROUTER}.{name}_loss_weight": f"config.auxiliary_loss.{name}_loss_weight"
        for name in ("importance", "load", "gshard")
    },
    f"{_ROUTER}.dispatcher.partition_spec": "config.num_expert_partitions",
    f"{_ROUTER}.additional_losses": "config.consistency",
}


def complete(config: Config) -> ml_collections.ConfigDict:
    """Checks a configuration and fills in its defaults.

    Args:
      config: What `get_config` of a config file made.

    Raises:
      ConfigError: For the first field that is misspelt, missing, of another type, out of
        its range, or at odds with another field.
    """
    completed = complete_section(plain(config), SCHEMA, "config")
    _check_length(completed)
    _check_datasets(completed)
    _check_model(completed["model"], "config.model")
    _check_model(evaluation_model(completed), "config.model with config.evaluate.model_overrides")
    _check_partitions(completed)
    _check_optimizer(completed["optimizer"])
    _check_two_views(completed)
    _check_fewshot(completed["fewshot"])
    return ml_collections.ConfigDict(_hold_places(completed, SCHEMA))


def fewshot_sections(options: Config) -> dict[str, dict[str, ml_collections.ConfigDict]]:
    """Returns the data sections of `config.fewshot`, as those of `config.dataset`.

    Args:
      options: `config.fewshot`, completed.

    Returns:
      A section by data set and by its split 'train', 'val' or 'test'.
    """
    shared = {name: options[name] for name in ("process", "batch_size", "data_dir")}
    return {
        name: {
            split: ml_collections.ConfigDict(
                complete_section({**shared, "name": dataset, "split": part}, DATASET, name)
            )
            for split, part in zip(("train", "val", "test"), parts, strict=True)
        }
        for name, (dataset, *parts) in options["datasets"].items()
    }


def override(config: Config, changes: Config) -> dict[str, Any]:
    """Returns a configuration with changed fields, which `complete` has yet to check.

    Args:
      config: The configuration.
      changes: New values, nested as in the configuration. A section keeps the fields that
        are not named; where another variant is chosen, it loses those of the old one.
        None takes a section away.
    """
    return _merge(plain(config), plain(changes), SCHEMA)


def evaluation_model(config: Config) -> dict[str, Any]:
    """Returns the `model` of a configuration as it is evaluated, with its overrides."""
    overrides = plain(config["evaluate"]["model_overrides"])
    merged = _merge(plain(config["model"]), overrides, MODEL)
    return complete_section(merged, MODEL, "config.model with config.evaluate.model_overrides")


def check_batch(config: Config, section: str, image_shape: Sequence[int], num_devices: int):
    """Checks that the images of a split fit the model, its groups and the devices.

    Args:
      config: A completed configuration.
      section: Where the configuration has the data, such as 'dataset.train' or 'fewshot'.
      image_shape: Shape of the global batch: (B, H, W, 3), or (B, 2, H, W, 3).
      num_devices: Devices of all hosts.

    Raises:
      ConfigError: If the image does not split into patches, the batch over the devices,
        or the tokens of the devices into groups.
    """
    train = section == "dataset.train"
    model = config["model"] if train else evaluation_model(config)
    *views, height, width, _ = image_shape[1:]
    batch_size = image_shape[0]
    field = f"config.{section}.batch_size"
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
        images = batch_size * (2 if views else 1) // microsteps
        if images * tokens % (moe["group_size"] * num_devices):
            raise ConfigError(
                "config.model.encoder.moe.group_size",
                moe["group_size"],
                f"must divide the tokens of a device in config.{section}: {images} "
                f"images x {tokens} tokens / {num_devices} devices = "
                f"{images * tokens / num_devices:g}",
            )


def check_regex(field: str, pattern: Any):
    """Raises ConfigError if the value of a field is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(field, pattern, f"not a regular expression ({error})") from None


def parse_arguments(text: str, **defaults: Any) -> ml_collections.ConfigDict:
    """Reads the arguments of `--config=configs/x.py:k=1,prc=off`.

    Args:
      text: What stands behind the colon, possibly nothing.
      **defaults: The arguments and their defaults, whose types they keep; a bool is
        written on, off, true or false.

    Raises:
      ConfigError: If an argument is unknown, or not of its type.
    """
    arguments = dict(defaults)
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        field = f"config argument {name!r}"
        if name not in defaults:
            raise ConfigError(
                field,
                value,
                f"unknown; allowed: {', '.join(defaults)}",
                nearest(name, defaults),
            )
        arguments[name] = _parse_value(field, value, type(defaults[name]))
    return ml_collections.ConfigDict(arguments)


def _parse_value(field: str, value: str, kind: type) -> Any:
    if kind is bool:
        words = {"on": True, "true": True, "off": False, "false": False}
        if value.lower() not in words:
            raise ConfigError(field, value, f"expected one of {', '.join(words)}")
        return words[value.lower()]
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(field, value, f"expected {kind.__name__}") from None


def plain(value: Any) -> Any:
    """Copies ConfigDicts to dicts and lists to tuples, so that what is checked is fixed."""
    if isinstance(value, ml_collections.FieldReference):
        value = value.get()
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    return value


def _merge(base: Any, changes: Any, spec: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    fields = spec.fields if isinstance(spec, Section) else {}
    if isinstance(spec, Section) and spec.variants:
        choice = changes.get(spec.key, base.get(spec.key))
        if choice != base.get(spec.key):
            base = {key: value for key, value in base.items() if key in fields}
        fields = {**fields, **spec.variants.get(choice, {})}
    if isinstance(spec, Named):
        base = {key: value for key, value in base.items() if changes.get(key, value) is not None}
        changes = {key: value for key, value in changes.items() if value is not None}
        fields = dict.fromkeys(changes, spec.section)
    return {
        key: _merge(base.get(key), changes[key], fields.get(key)) if key in changes else base[key]
        for key in {**base, **changes}
    }


def complete_section(values: Any, section: Section, field: str) -> dict[str, Any] | None:
    """Checks a group of fields and fills in its defaults; see `complete`.

    Args:
      values: What was given.
      section: The schema.
      field: Dotted name of the group, for errors.

    Raises:
      ConfigError: For the first field that is misspelt, missing, of another type, or out
        of its range.
    """
    if values is None and section.optional:
        return None
    if not isinstance(values, Mapping):
        raise ConfigError(field, values, "expected a group of fields")
    fields = dict(section.fields)
    if section.variants:
        choice = _complete_field(
            values.get(section.key, REQUIRED), fields[section.key], f"{field}.{section.key}"
        )
        fields |= section.variants.get(choice, {})
    for key in values:
        name = f"{field}.{key}"
        if key not in fields:
            if name in MOVED:
                raise ConfigError(name, values[key], f"has moved to {MOVED[name]}")
            allowed = f"unknown field; allowed: {', '.join(sorted(fields))}"
            raise ConfigError(name, values[key], allowed, nearest(key, fields))
    return {
        key: _complete_value(values.get(key, REQUIRED), spec, f"{field}.{key}")
        for key, spec in fields.items()
    }


def _complete_value(value: Any, spec: Any, field: str) -> Any:
    if isinstance(spec, Section):
        if value is REQUIRED:
            value = None if spec.optional else {}
        return complete_section(value, spec, field)
    if isinstance(spec, Named):
        if not isinstance(value, Mapping):
            raise ConfigError(field, None if value is REQUIRED else value, "expected sections")
        return {
            key: complete_section(v, spec.section, f"{field}.{key}") for key, v in value.items()
        }
    return _complete_field(value, spec, field)


def _hold_places(values: Any, spec: Any) -> Any:
    """Gives each None the type that a value on the command line must have."""
    if isinstance(spec, Field):
        held = values is None and isinstance(spec.kind, tuple)
        return ml_collections.config_dict.placeholder(spec.kind[0]) if held else values
    if isinstance(spec, Named):
        return {key: _hold_places(value, spec.section) for key, value in values.items()}
    if values is None:
        return None
    fields = {**spec.fields, **spec.variants.get(values.get(spec.key), {})}
    return {key: _hold_places(value, fields[key]) for key, value in values.items()}


def _complete_field(value: Any, spec: Field, field: str) -> Any:
    if value is REQUIRED:
        if spec.default is REQUIRED:
            raise ConfigError(field, None, f"missing; expected {_describe(spec)}")
        return spec.default
    kinds = spec.kind if isinstance(spec.kind, tuple) else (spec.kind,)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        value = value if int in kinds else float(value)
    # A bool is an int to Python, but `seed = True` is a mistake.
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if wrong:
        raise ConfigError(field, value, f"expected {_describe(spec)}")
    if spec.allowed and value not in spec.allowed:
        near = nearest(value, [a for a in spec.allowed if a]) if isinstance(value, str) else None
        raise ConfigError(field, value, f"expected {_describe(spec)}", near)
    if isinstance(value, (int, float)):
        too_small = spec.minimum is not None and value < spec.minimum
        too_large = spec.maximum is not None and value > spec.maximum
        if too_small or too_large or (spec.above is not None and value <= spec.above):
            raise ConfigError(field, value, f"expected {_describe(spec)}")
    return value


def _describe(spec: Field) -> str:
    if spec.allowed:
        return f"one of {', '.join(str(value) for value in spec.allowed)}"
    kinds = spec.kind if isinstance(spec.kind, tuple) else (spec.kind,)
    text = " or ".join("None" if k is type(None) else k.__name__.lower() for k in kinds)
    if spec.minimum is not None and spec.maximum is not None:
        return f"{text} from {spec.minimum:g} to {spec.maximum:g}"
    if spec.minimum is not None:
        return f"{text} of at least {spec.minimum:g}"
    return text if spec.above is None else f"{text} above {spec.above:g}"


def _check_length(config: Mapping[str, Any]):
    if config["train_steps"] is None and config["train_epochs"] is None:
        raise ConfigError("config.train_steps", None, "missing; give it, or config.train_epochs")


def _check_datasets(config: Mapping[str, Any]):
    datasets = config["dataset"]
    if "train" not in datasets:
        raise ConfigError("config.dataset.train", None, "missing; the split to train on")
    metric = config["save_checkpoint"]["best_metric"]
    splits = [split for split in datasets if split != "train"]
    if metric is not None and metric.partition("/")[0] not in splits:
        allowed = ", ".join(f"{split}/accuracy" for split in splits)
        raise ConfigError(
            "config.save_checkpoint.best_metric",
            metric,
            f"expected a metric of an evaluated split, such as {allowed}",
        )
    if config["save_checkpoint"]["keep_best"] and metric is None:
        raise ConfigError("config.save_checkpoint.best_metric", None, "missing; keep_best needs it")


def _check_model(model: Mapping[str, Any], field: str):
    encoder, patch_size = model["encoder"], model["patch_size"]
    if len(patch_size) != 2 or not all(isinstance(p, int) and p > 0 for p in patch_size):
        raise ConfigError(f"{field}.patch_size", patch_size, "expected (height, width) in pixels")
    if model["hidden_size"] % encoder["num_heads"]:
        raise ConfigError(
            f"{field}.encoder.num_heads",
            encoder["num_heads"],
            f"must divide hidden_size = {model['hidden_size']}",
        )
    moe, num_layers = encoder["moe"], encoder["num_layers"]
    for layer in moe["layers"]:
        if not isinstance(layer, int) or not 0 <= layer < num_layers:
            raise ConfigError(
                f"{field}.encoder.moe.layers",
                moe["layers"],
                f"expected block numbers from 0 to {num_layers - 1}",
            )
    selected = moe["router"].get("num_selected_experts", 1)
    if selected > moe["num_experts"]:
        raise ConfigError(
            f"{field}.encoder.moe.router.num_selected_experts",
            selected,
            f"must not exceed num_experts = {moe['num_experts']}",
        )
    router, dispatch = moe["router"]["name"], moe["router"]["dispatcher"]["name"]
    if router == "NoisyTopItemsPerExpertRouter" and dispatch == "dropless":
        raise ConfigError(
            f"{field}.encoder.moe.router.dispatcher.name",
            dispatch,
            f"needs a router without capacity, which {router} is not; use 'gather'",
        )


def _check_partitions(config: Mapping[str, Any]):
    moe, partitions = config["model"]["encoder"]["moe"], config["num_expert_partitions"]
    if moe["layers"] and moe["num_experts"] % partitions:
        raise ConfigError(
            "config.num_expert_partitions",
            partitions,
            f"must divide config.model.encoder.moe.num_experts = {moe['num_experts']}; "
            "devices beyond the partitions hold copies of the experts",
        )


def _check_optimizer(optimizer: Mapping[str, Any]):
    clip = optimizer["gradient_clip"]
    if clip["global_norm"] and clip["absolute_value"]:
        raise ConfigError(
            "config.optimizer.gradient_clip.absolute_value",
            clip["absolute_value"],
            "cannot be combined with global_norm",
        )
    decay, frozen = optimizer["weight_decay"], optimizer["frozen_pattern"]
    if isinstance(decay, tuple):
        for rule in decay:
            if not (isinstance(rule, tuple) and len(rule) == 2):
                raise ConfigError(
                    "config.optimizer.weight_decay", decay, "expected pairs (regex, factor)"
                )
            check_regex("config.optimizer.weight_decay", rule[0])
    for pattern in (frozen,) if isinstance(frozen, str) else frozen or ():
        check_regex("config.optimizer.frozen_pattern", pattern)


def _check_fewshot(fewshot: Mapping[str, Any] | None):
    if fewshot is None:
        return
    for name, parts in fewshot["datasets"].items():
        texts = isinstance(parts, tuple) and all(isinstance(part, str) for part in parts)
        if not texts or len(parts) != 4:
            raise ConfigError(
                f"config.fewshot.datasets.{name}",
                parts,
                "expected (TFDS name, training split, validation split, test split)",
            )
    for shot in fewshot["shots"]:
        if not isinstance(shot, int) or shot < 1:
            raise ConfigError("config.fewshot.shots", fewshot["shots"], "expected ints above 0")
    for l2 in fewshot["l2_regs"]:
        if not isinstance(l2, (int, float)) or l2 <= 0:
            raise ConfigError(
                "config.fewshot.l2_regs", fewshot["l2_regs"], "expected floats above 0"
            )
    for field in ("shots", "l2_regs"):
        if not fewshot[field]:
            raise ConfigError(f"config.fewshot.{field}", fewshot[field], "expected at least one")


def _check_two_views(config: Mapping[str, Any]):
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
