"""Turns config files of google-research/vmoe and m82kada/PRC into ours.

    python -m vmoe_prc.convert_config FILE[:ARGUMENTS] > ours.py

`--config=FILE` of every program takes such a file as it is, by the same conversion. What is
changed is noted; what has no counterpart is refused, all of it at once, with what to write
instead.
"""

import dataclasses
import pprint
import re
import sys
from collections.abc import Mapping
from typing import Any

from vmoe_prc.config import ConfigError, complete
from vmoe_prc.config.files import read_released
from vmoe_prc.config.values import plain
from vmoe_prc.data.ops import registry as ops
from vmoe_prc.errors import UserError
from vmoe_prc.runtime.arguments import ArgumentParser
from vmoe_prc.runtime.programs import add_traceback_argument, run_program

# Fields without effect here, by their ends, with the reason.
_DROPPED = {
    r"extra_rng_keys": "",
    r"axis_resources_regexes": "",
    r"partition_spec": "",
    r"wait_seconds": "",
    r"all_processes": "",
    r"contrastive": "",
    r"compute_similarity_metrics": "",
    r"num_parallel_calls": "",
    r"model\.image_size": "",
    r"every_secs": "intervals are counted in steps",
    r"raise_if_dtype_mismatched": "arrays get the type of the model",
    r"seeds_per_step": "few-shot evaluations draw once",
    r"seed_fold_in_step": "few-shot evaluations draw once",
    r"fewshot\.cache": "",
    r"fewshot\.main_task": "all tasks are reported alike",
    r"shuffle_seed": "the order follows from config.seed",
}
# Replacements for fields that have no counterpart, by the ends of their names.
_INSTEAD = {
    r"config\.(retrieval|zeroshot)": "leave it out: there is no contrastive training",
    r"restore": "run python -m vmoe_prc.analyze robustness WORKDIR --perturbation=pgd_vmoe",
    r"mixup_process": "'' (mixup is config.mixup)",
    r"pre_filter_fn": "a data set of yours that yields only what you want (docs/extending.md)",
    r"teacher_student": "False; config.consistency.stop_gradient is one view's",
    r"stop_grad": "False",
}
_TEXT = '''"""Converted from {source}."""

from vmoe_prc.config import complete


def get_config(arguments: str = ""):
    del arguments
    return complete(
        {body}
    )
'''


class RefusedConfigError(UserError, ValueError):
    """A configuration of another program that cannot be converted: one line for each field."""

    _has_lines = True


@dataclasses.dataclass
class Log:
    """Changes and refusals of a conversion.

    Attributes:
      notes: (field, its new form), each line once.
      refusals: (field, value, what to write instead).
    """

    notes: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    refusals: list[tuple[str, Any, str]] = dataclasses.field(default_factory=list)

    def note(self, field: str, text: str) -> None:
        """Notes a change."""
        if (field, text) not in self.notes:
            self.notes.append((field, text))

    def refuse(self, field: str, value: Any, instead: str) -> None:
        """Refuses a value."""
        self.refusals.append((field, value, instead))


def convert(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Converts a configuration of V-MoE or PRC, and prints what it changes.

    Args:
      config: Result of `get_config` of their file.
      source: The file, for messages.

    Raises:
      RefusedConfigError: If fields have no counterpart here; it lists all of them.
    """
    log = Log()
    converted = converted_fields(config, log)
    if log.refusals:
        lines = [f"{source}: {len(log.refusals)} fields have no counterpart here"]
        lines += [f"  {f} = {_short(v)}: write {how}" for f, v, how in log.refusals]
        raise RefusedConfigError("\n".join(lines))
    print(f"{source}: a configuration of V-MoE or PRC, converted", file=sys.stderr)
    for field, text in log.notes:
        print(f"  {field}: {text}", file=sys.stderr)
    return converted


def converted_fields(config: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Returns our fields; what has no counterpart is left out, and refused in the log."""
    theirs = _without_dropped(plain(config), "config", log)
    ours = {k: theirs.pop(k) for k in ("description", "seed") if k in theirs}
    for key in ("train_steps", "train_epochs"):
        if key in theirs:
            ours[key] = theirs.pop(key)
    if "name" in theirs.get("dataset", {}) and isinstance(theirs["dataset"]["name"], str):
        log.refuse("config.dataset", theirs.pop("dataset"), "named splits, such as dataset.train")
    ours["dataset"] = {
        split: _dataset(section, split, log) for split, section in theirs.pop("dataset", {}).items()
    }
    pair_class_tokens = theirs.pop("patch_correspondence", {}).get("cls_correspondence", False)
    model, losses = _model(theirs.pop("model", {}), "config.model", log)
    ours |= {"model": model, **losses}
    if ours.get("consistency"):
        ours["consistency"]["pair_class_tokens"] = pair_class_tokens
    for name, function in _SECTIONS.items():
        if theirs.get(name) is not None:
            section = function(theirs.pop(name), log)
            if section is not None:
                ours[name] = section
    partitions = theirs.pop("num_expert_partitions", 1)
    ours["num_expert_partitions"] = 1 if partitions == 1 else "auto"
    if partitions != 1:
        log.note(
            "config.num_expert_partitions",
            f"{partitions} -> 'auto': as many as divide the experts and the devices",
        )
    ours |= theirs
    return _checked(ours, log)


def _without_dropped(values: Any, field: str, log: Log) -> Any:
    """Leaves out what has no effect here, also in nested sections."""
    if not isinstance(values, Mapping):
        return values
    kept = {}
    for key, value in values.items():
        name = f"{field}.{key}"
        reason = next((r for end, r in _DROPPED.items() if re.search(rf"(^|\.){end}$", name)), None)
        if reason is None:
            kept[key] = _without_dropped(value, name, log)
        elif reason and value is not None:
            log.note(name, f"left out: {reason}")
    return kept


def _dataset(section: Mapping[str, Any], split: str, log: Log) -> dict[str, Any]:
    field = f"config.dataset.{split}"
    ours = {k: v for k, v in section.items() if v is not None or k in ("data_dir", "manual_dir")}
    if not ours.pop("mixup_process", None):
        section = {k: v for k, v in section.items() if k != "mixup_process"}
    else:
        log.refuse(f"{field}.mixup_process", section["mixup_process"], _INSTEAD["mixup_process"])
    if ours.get("cache") == "batched":
        del ours["cache"]
        log.note("config.dataset.*.cache", "'batched' left out: every epoch makes new batches")
    if split == "train":
        # The default of their pipeline.
        ours.setdefault("shuffle_buffer", 50_000)
    else:
        ours["shuffle_buffer"] = 0
        if "ignore_no_labels" not in section.get("process", ""):
            ours["unlabelled"] = "wrong"
    if not ours.get("prefetch", True):
        del ours["prefetch"]
    ours["process"] = convert_process(section.get("process", ""), f"{field}.process", log)
    return ours


def convert_process(process: str, field: str, log: Log) -> str:
    """Converts a preprocessing string: the ops of PRC for two views, and defaults that differ."""
    try:
        calls = ops.parse(process)
    except ValueError as error:
        log.refuse(field, process, f"another string: {error}")
        return process
    two_views = any(name in _TWO_VIEW_OPS for name, _, _ in calls)
    written = []
    for name, args, kwargs in calls:
        if name in _TWO_VIEW_OPS:
            written += _two_views(name, args, kwargs, field, log)
            continue
        if name == "keep":
            # The map between the views; theirs keeps what there is.
            args = tuple(
                "view_from_image" if a == "R" else a for a in args if a != "R" or two_views
            )
        if name == "onehot" and not {"key", "inkey"} & kwargs.keys():
            kwargs = {**kwargs, "inkey": "label" if "outkey" in kwargs else "labels"}
        if name in _RESIZING:
            kwargs = {**kwargs, "truncate": True}
        call = _call(name, args, kwargs)
        try:
            ops.build(call, field)
        except ConfigError as error:
            unknown = error.expected.startswith("unknown op")
            log.refuse(field, call, "leave it out: no such op" if unknown else error.expected)
        else:
            written.append(call)
    return "|".join(written)


# Their ops that drop fractions of bytes.
_RESIZING = ("resize", "inception_crop", "decode_jpeg_and_inception_crop")
_TWO_VIEW_OPS = (
    "decode_jpeg_and_randaug_ssl",
    "decode_jpeg_and_ssl_augment",
    "decode_and_ssl_augment",
)
# Their defaults of the first and the second crop.
_AREAS = {"area_min": 5, "area_max": 70, "area2_min": 60, "area2_max": 100}


def _two_views(name: str, args: tuple, kwargs: dict[str, Any], field: str, log: Log) -> list[str]:
    names = ["resize_size"]
    names += ["num_layers", "magnitude"] if "randaug" in name else []
    names += ["original_image_size", "patch_size", *_AREAS, "use_cls", "channels"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    areas = [given.get(key, default) for key, default in _AREAS.items()]
    if not isinstance(given.get("resize_size"), int):
        log.refuse(
            field, _call(name, args, kwargs), "the size of the views, such as two_views(224)"
        )
        return []
    size = given["resize_size"]
    views = f"two_views({size}, {tuple(areas[:2])}, {tuple(areas[2:])}, truncate=True)"
    calls = ["decode", views, "flip_lr"]
    if "randaug" in name:
        layers, magnitude = given.get("num_layers", 2), given.get("magnitude", 10)
        calls.append(f"randaug({layers}, {magnitude}, variant='prc')")
    log.note(field, f"{name} -> {'|'.join(calls)}")
    return calls


def _call(name: str, args: tuple, kwargs: Mapping[str, Any]) -> str:
    written = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
    return f"{name}({written})" if written else name


def _model(model: Mapping[str, Any], field: str, log: Log) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns our model, and the losses on its routers."""
    ours = {k: v for k, v in model.items() if k != "encoder"}
    encoder = model.get("encoder", {})
    if model.get("name") == "VisionTransformer":
        ours = {k: v for k, v in model.items() if k not in ("patches", "transformer")}
        ours |= {"name": "VisionTransformerMoe", "patch_size": model["patches"]["size"]}
        encoder = {**model["transformer"], "moe": {"layers": ()}}
        log.note(f"{field}.name", "VisionTransformer -> VisionTransformerMoe without experts")
    if model.get("name") == "VisionTransformerMoeEnsemble":
        ours["name"] = "VisionTransformerMoe"
        log.note(f"{field}.name", "-> VisionTransformerMoe, whose moe.ensemble_size is set")
    if "TwoTower" in str(model.get("name")):
        log.refuse(f"{field}.name", model["name"], "a classifier: there is no contrastive training")
        return {}, {}
    moe = dict(encoder.get("moe", {}))
    if moe.get("layers") in ((), None):
        moe = {"num_experts": 1, "group_size": 1, "layers": ()}
        return ours | {"encoder": {**encoder, "moe": moe}}, {}
    moe.setdefault("dropout_rate", encoder.get("dropout_rate", 0.0))
    moe["router"], losses = _router(moe.get("router", {}), f"{field}.encoder.moe.router", log)
    if encoder.get("dtype") is not None:
        # Their routers compute in the type of the blocks.
        moe["router"].setdefault("dtype", encoder["dtype"])
    if (layers := losses.get("consistency", {}).pop("layers", None)) is not None:
        # Theirs counts blocks from 1.
        blocks = tuple(layer - 1 for layer in layers)
        if set(blocks) != set(moe["layers"]):
            losses["consistency"]["blocks"] = blocks
    return ours | {"encoder": {**encoder, "moe": moe}}, losses


def _router(
    router: Mapping[str, Any], field: str, log: Log
) -> tuple[dict[str, Any], dict[str, Any]]:
    ours = dict(router)
    chooses_experts = ours.get("name", "NoisyTopExpertsPerItemRouter").startswith("NoisyTopExperts")
    # The defaults of their router.
    defaults = {"importance": 1.0, "load": 1.0, "gshard": 0.0} if chooses_experts else {}
    names = ("importance", "load", "gshard")
    weights = {
        f"{name}_loss_weight": ours.pop(f"{name}_loss_weight", defaults.get(name)) for name in names
    }
    losses: dict[str, Any] = {"auxiliary_loss": {k: v for k, v in weights.items() if v is not None}}
    if isinstance(ours.get("dispatcher"), Mapping):
        ours["dispatcher"] = dict(ours["dispatcher"])
        if ours["dispatcher"].get("name") == "indices":
            ours["dispatcher"]["name"] = "gather"
            log.note(f"{field}.dispatcher.name", "'indices' -> 'gather', the same by another name")
    if ours.get("name") == "SoftRouter":
        # Theirs always rounds what it sends.
        ours.setdefault("dispatcher", {"name": "gather", "bfloat16": True})
    layers = ours.pop("similarity_loss_layer", None)
    for name in ("teacher_student", "stop_grad"):
        if ours.pop(name, False):
            log.refuse(f"{field}.{name}", True, _INSTEAD[name])
    given = {name: weight for name, weight in ours.pop("additional_losses", ()) if weight}
    if given:
        losses["consistency"] = _consistency(given, f"{field}.additional_losses", log)
        if losses["consistency"] is None:
            del losses["consistency"]
        elif layers is not None:
            losses["consistency"]["layers"] = layers
    return ours, losses


def _consistency(given: Mapping[str, float], field: str, log: Log) -> dict[str, Any] | None:
    prc = {"matrix_top1_diagonal", "matrix_top1_offdiagonal"}
    if given.keys() <= prc:
        log.note(field, "-> config.consistency, with the diagonal as the released program has it")
        return {
            "name": "prc",
            "diagonal_weight": given.get("matrix_top1_diagonal", 0.0),
            "off_diagonal_weight": given.get("matrix_top1_offdiagonal", 0.0),
            "diagonal": "per_position",
        }
    if given.keys() in ({"l2"}, {"jsd"}):
        [(name, weight)] = given.items()
        log.note(field, "-> config.consistency")
        # Theirs sums the divergences of an image twice.
        reduction = {"reduction": "times_pairs"} if name == "jsd" else {}
        return {"name": name, "weight": weight, **reduction}
    for name in given.keys() - prc:
        log.refuse(field, (name, given[name]), "matrix_top1_diagonal and matrix_top1_offdiagonal")
    return None


def _mixup(section: Mapping[str, Any], log: Log) -> dict[str, Any] | None:
    ours = dict(section)
    if "mixup_size" in ours:
        ours["size"] = ours.pop("mixup_size")
        log.note("config.mixup.mixup_size", "-> size")
    if not ours.get("concentration"):
        log.note("config.mixup", "concentration 0 -> None: images are not mixed")
        return None
    return ours


def _initialization(section: Mapping[str, Any], log: Log) -> dict[str, Any]:
    ours = dict(section)
    ours.pop("name", None)
    for key in ("directory", "filepath"):
        if key in ours:
            ours["prefix"] = ours.pop(key)
    if ours.pop("raise_if_shape_mismatched", True) is False:
        log.refuse(
            "config.initialization.raise_if_shape_mismatched", False, "'expand_tile' in a rule"
        )
    return ours


def _evaluate(section: Mapping[str, Any], log: Log) -> dict[str, Any]:
    return dict(section)


def _fewshot(section: Mapping[str, Any], log: Log) -> dict[str, Any]:
    ours = {k: v for k, v in section.items() if k != "model_overrides"}
    if any(len(parts) == 3 for parts in section.get("datasets", {}).values()):
        log.note(
            "config.fewshot.datasets",
            "the last tenth of each training split becomes the validation split, on which the "
            "penalty is chosen; theirs is chosen on the test split",
        )
    if "process" in ours:
        ours["process"] = convert_process(ours["process"], "config.fewshot.process", log)
    return ours


def _unchanged(section: Any, log: Log) -> Any:
    return section


_SECTIONS = {
    "loss": _unchanged,
    "optimizer": _unchanged,
    "mixup": _mixup,
    "initialization": _initialization,
    "evaluate": _evaluate,
    "fewshot": _fewshot,
}


def _checked(ours: dict[str, Any], log: Log) -> dict[str, Any]:
    """Refuses all that the schema refuses, not only the first."""
    trial = plain(ours)
    for _ in range(100):
        try:
            complete(trial)
        except ConfigError as error:
            instead = next((t for e, t in _INSTEAD.items() if re.search(e, error.field)), None)
            near = f"; did you mean {error.suggestion!r}?" if error.suggestion else ""
            if not log.refusals or instead or _exists(trial, error.field):
                known = not error.expected.startswith("unknown field")
                what = error.expected if known else "leave it out: no such field"
                log.refuse(error.field, error.value, instead or f"{what}{near}")
            if not _remove(trial, error.field):
                break
        else:
            break
    return ours


def _exists(config: dict[str, Any], field: str) -> bool:
    return _remove(plain(config), field)


def _remove(config: dict[str, Any], field: str) -> bool:
    """Removes a field; whether it was there."""
    *sections, name = field.split(".")[1:] or [""]
    for section in sections:
        config = config.get(section) if isinstance(config, dict) else None  # type: ignore
    if not isinstance(config, dict) or name not in config:
        return False
    del config[name]
    return True


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = ArgumentParser(
        prog="python -m vmoe_prc.convert_config", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("source", metavar="FILE[:ARGUMENTS]", help="config file of V-MoE or PRC")
    add_traceback_argument(parser)
    args = parser.parse_args(argv)
    return run_program(lambda: print(written(args.source)), args.traceback)


def written(source: str) -> str:
    """Returns the text of a config file of ours.

    Raises:
      RefusedConfigError: If fields have no counterpart here; it lists all of them.
      ConfigError: If the file cannot be run.
    """
    fields = convert(read_released(source, "FILE").to_dict(), source)
    body = pprint.pformat(fields, width=90, sort_dicts=False).replace("\n", "\n        ")
    return _TEXT.format(source=source.rpartition("/")[2], body=body).rstrip()


if __name__ == "__main__":
    sys.exit(main())
