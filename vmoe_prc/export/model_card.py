"""The model card of an exported folder: what the model is, what it was trained on, how good it is.

The header is the metadata that Hugging Face's hub reads.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

import vmoe_prc
from vmoe_prc.config.metric_names import TRAIN, MetricName, parse_names
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.predict.model import TrainedModel
from vmoe_prc.workdir.history import read_data
from vmoe_prc.workdir.metrics import METRICS_FILE, read_metrics
from vmoe_prc.workdir.text_tables import markdown_lines

# Class names that a card lists.
MAX_CLASSES = 50
_NOT_RECORDED = "Not recorded with these parameters."
# Metrics of a split, and what they are called.
_METRICS = {
    "accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "top1": "agreement of first experts of matched patches",
    "kappa": "the same, corrected for chance",
    "kappa_place": "the same, corrected for chance and image",
}


def model_card(model: TrainedModel, source: epath.Path, license: str | None) -> str:
    """Writes the card as Markdown.

    Args:
      model: The model.
      source: Where it was opened; a work directory also has its data and metrics.
      license: Identifier of the licence of the parameters; None if it is not known.
    """
    header = ["library_name: vmoe_prc", "pipeline_tag: image-classification"]
    header += ["tags: [vision, mixture-of-experts]"]
    header += [f"license: {license}"] if license else []
    stated = license or "Not stated when the model was exported."
    sections = {
        "Model": _model(model),
        "Use": _use(),
        "Classes": _classes(model.classes),
        "Data": _data(source),
        "Recipe": _recipe(model.config),
        "Metrics and agreement": _metrics(source),
        "Limits": _limits(model.config),
        "Licence": [stated],
    }
    lines = ["---", *header, "---", "", f"# {model.name}"]
    for title, text in sections.items():
        lines += ["", f"## {title}", "", *text]
    return "\n".join(lines)


def count_active(params: Mapping[str, Any], config: Any) -> int:
    """Counts the parameters that a token uses: of the experts, the K that it chooses."""
    moe = config.model.encoder.moe
    chosen = moe.router.get("num_selected_experts", moe.num_experts) if moe.layers else 0

    def count(path: tuple[Any, ...], x: Any) -> int:
        names = [key.key for key in path]
        is_expert = "Moe" in names and "Mlp" in names
        return x.size // moe.num_experts * chosen if is_expert else x.size

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(count, params)))


def _model(model: TrainedModel) -> list[str]:
    config, moe = model.config.model, model.config.model.encoder.moe
    total = sum(x.size for x in jax.tree.leaves(model.params))
    flops = forward_flops_per_image(model.model_options(model.image_size), model.image_size)
    height, width = model.image_size
    rows = [("property", "value")]
    rows += [
        (
            "images",
            f"{height} x {width} pixels, patches of {' x '.join(map(str, model.patch_size))}",
        )
    ]
    rows += [("size", f"{config.encoder.num_layers} blocks, width {config.hidden_size}")]
    if moe.layers:
        blocks = ", ".join(map(str, moe.layers))
        chosen = moe.router.get("num_selected_experts")
        each = f", {chosen} per token" if chosen else ""
        rows += [("experts", f"{moe.num_experts}{each}, in blocks {blocks}")]
        rows += [("router", moe.router.name)]
    rows += [
        (
            "parameters",
            f"{total:,}, of which a token uses {count_active(model.params, model.config):,}",
        )
    ]
    rows += [("operations", f"{flops:,} per image")]
    return [model.config.description or "A vision transformer.", "", *markdown_lines(rows)]


def _use() -> list[str]:
    code = ["import vmoe_prc", "", 'model = vmoe_prc.open("this/folder")']
    code += ['model.predict(["photo.jpg"])']
    return [
        "```python",
        *code,
        "```",
        "",
        "`preprocessing.json` describes how an image becomes the pixels that the model sees; every "
        "image is routed separately and no token is dropped.",
    ]


def _classes(classes: Sequence[str]) -> list[str]:
    shown = ", ".join(classes[:MAX_CLASSES])
    more = f", and {len(classes) - MAX_CLASSES:,} more in `classes.json`"
    return [f"{len(classes):,}: {shown}{more if len(classes) > MAX_CLASSES else ''}."]


def _data(source: epath.Path) -> list[str]:
    data = read_data(source) if source.is_dir() else {}
    if not data:
        return [_NOT_RECORDED]
    rows: list[Sequence[str]] = [("used as", "data set", "split", "images")]
    for name, split in data.items():
        rows.append((name, *(str(split.get(key, "")) for key in ("name", "split", "num_examples"))))
    return markdown_lines(rows)


def _recipe(config: Any) -> list[str]:
    fields = {
        "steps": config.train_steps,
        "images per step": config.dataset.train.batch_size,
        "preprocessing": f"`{config.dataset.train.process}`",
        "optimiser": config.optimizer.name,
        "learning rate": f"`{json.dumps(config.optimizer.learning_rate.to_dict(), default=list)}`",
        "loss": config.loss.name,
        "consistency loss": (config.get("consistency") or {}).get("name") or "none",
        "seed": config.seed,
        "vmoe_prc": vmoe_prc.__version__,
    }
    rows = [("field", "value"), *((name, str(value)) for name, value in fields.items())]
    # A bar would end the cell.
    rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [*markdown_lines(rows), "", "The whole configuration is `config.json`."]


def _metrics(source: epath.Path) -> list[str]:
    path = source / METRICS_FILE
    if not path.exists():
        return [_NOT_RECORDED]
    last: dict[MetricName, tuple[float, int]] = {}
    for record in read_metrics(path):
        for name, value in parse_names(record).items():
            if _is_shown(name) and isinstance(value, int | float):
                last[name] = value, record["step"]
    if not last:
        return [_NOT_RECORDED]
    rows = [("split", "metric", "value", "step")]
    for name, (value, step) in last.items():
        rows.append((str(name.group), _METRICS[name.measure], f"{value:.2%}", f"{step:,}"))
    return markdown_lines(rows)


def _is_shown(name: MetricName) -> bool:
    """Whether a metric is of a split, and over all blocks."""
    whole = name.block is None and name.bound is None
    return whole and name.group not in (None, TRAIN) and name.measure in _METRICS


def _limits(config: Any) -> list[str]:
    return [
        "The model knows only the classes above and gives probabilities for any picture. Accuracy "
        "was measured on images like the training images"
        + (
            ", with experts of limited capacity; here no token is dropped, so that it can differ."
            if config.model.encoder.moe.layers
            else "."
        )
    ]
