"""Output of `python -m vmoe_prc.predict`: predictions as text, CSV or JSON lines; routing."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vmoe_prc.arrays import Float, Int
from vmoe_prc.figures.mistakes import MOST_IMAGES, confusion_figure, mistakes_figure
from vmoe_prc.figures.panels import save_figure, to_display
from vmoe_prc.figures.routing_maps import PatchRouting, routing_map_figure
from vmoe_prc.predict.labelled import Evaluation
from vmoe_prc.predict.model import ImageRouting, Prediction, TrainedModel

FORMATS = ("text", "csv", "jsonl")
IMAGES_DRAWN = 8


def format_header(form: str, top_k: int) -> str:
    """Returns the line before the predictions; empty where a format has none."""
    if form != "csv":
        return ""
    ranks = range(1, top_k + 1)
    return _csv_line(["image", *(f"{x}{i}" for i in ranks for x in ("class", "probability"))])


def format_prediction(form: str, image: str, prediction: Prediction) -> str:
    """Formats the prediction of an image as one line.

    Args:
      form: One of `FORMATS`.
      image: Name of the image.
      prediction: Its classes.
    """
    pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))
    if form == "jsonl":
        classes = [{"class": name, "probability": round(p, 6)} for name, p in pairs]
        return json.dumps({"image": image, "classes": classes}, ensure_ascii=False)
    if form == "csv":
        return _csv_line([image, *(x for name, p in pairs for x in (name, f"{p:.6f}"))])
    return f"{image}: " + ", ".join(f"{name} {p:.1%}" for name, p in pairs)


def routing_table(
    names: Sequence[str], routings: Mapping[str, ImageRouting], class_token: bool, columns: int
) -> pd.DataFrame:
    """Lists every choice of every token.

    Args:
      names: N images.
      routings: Their choices by block.
      class_token: Whether token 0 is the class token.
      columns: Patches in a row of the grid.

    Returns:
      A row per image, block, token and choice: `image`, `block`, `token`, `row` and `col` of the
      patch (-1 for the class token), `choice` from 1, `expert`, `gate`, `kept`.
    """
    parts = []
    for block, routing in routings.items():
        n, t, k = (x.ravel() for x in np.indices(routing.experts.shape))
        patch = t - int(class_token)
        parts.append(
            pd.DataFrame(
                {
                    "image": np.array(names, object)[n],
                    "block": block,
                    "token": t,
                    "row": np.where(patch < 0, -1, patch // columns),
                    "col": np.where(patch < 0, -1, patch % columns),
                    "choice": k + 1,
                    "expert": routing.experts.ravel(),
                    "gate": routing.gates.ravel(),
                    "kept": routing.kept.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def write_routing(
    folder: pathlib.Path, model: TrainedModel, names: Sequence[str], pixels: Sequence[np.ndarray]
) -> list[pathlib.Path]:
    """Writes `routing.csv` of all images and `routing.png` of the first ones; returns the paths."""
    routings = model.routing_of_pixels(pixels)
    height, width = pixels[0].shape[:2]
    grid = (height // model.patch_size[0], width // model.patch_size[1])
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "routing.csv", folder / "routing.png"
    routing_table(names, routings, model.class_token, grid[1]).to_csv(table, index=False)
    drawn = to_display(np.stack(pixels[:IMAGES_DRAWN]), model.preprocessing.value_range)
    maps = {
        block: PatchRouting.of_tokens(
            r.experts[:IMAGES_DRAWN], r.kept[:IMAGES_DRAWN], grid, num_experts=model.num_experts
        )
        for block, r in routings.items()
    }
    labels = [pathlib.PurePath(name).name for name in names[:IMAGES_DRAWN]]
    save_figure(routing_map_figure(drawn, maps, labels=labels), picture)
    return [table, picture]


def write_evaluation(
    folder: pathlib.Path,
    model: TrainedModel,
    paths: Sequence[str],
    labels: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, " N"],
    result: Evaluation,
) -> list[pathlib.Path]:
    """Writes the tables of an evaluation, and figures of its confusions and worst mistakes.

    Args:
      folder: Where to write.
      model: The model.
      paths: N images.
      labels: (N,) their classes.
      predicted: (N,) their most probable classes.
      probabilities: (N,) of the most probable classes.
      result: `evaluate_labelled` of all that.

    Returns:
      The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        folder / "classes.csv": result.classes,
        folder / "confusion.csv": result.confusion,
        folder / "mistakes.csv": result.mistakes,
    }
    for path, table in tables.items():
        table.to_csv(path, index=False)
    worst = result.worst[:MOST_IMAGES]
    pixels = [model.preprocessing(paths[i]) for i in map(int, worst)]
    images = np.array(pixels).reshape(-1, *model.image_size, 3)
    figures = {
        folder / "confusion.png": confusion_figure(result.counts, model.classes),
        folder / "mistakes.png": mistakes_figure(
            to_display(images, model.preprocessing.value_range),
            labels[worst],
            predicted[worst],
            probabilities[worst],
            model.classes,
        ),
    }
    for path, figure in figures.items():
        save_figure(figure, path)
    return [*tables, *figures]


def _csv_line(cells: Sequence[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(cells)
    return file.getvalue()
