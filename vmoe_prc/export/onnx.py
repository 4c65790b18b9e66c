"""Export to ONNX, for onnxruntime and other runtimes."""

import json
import os

import jax
import numpy as np

from vmoe_prc.checkpoints.request import ExportRequest
from vmoe_prc.config.registry import CLASSIFICATION_LOSSES, EXPORTS
from vmoe_prc.predict.model import TrainedModel, open_model
from vmoe_prc.workdir.atomic import atomic_write
from vmoe_prc.workdir.paths import user_path

INPUT = "pixels"


@EXPORTS.register("onnx")
def export_onnx(request: ExportRequest) -> list[str]:
    """Writes TARGET; parameters of 2 GiB and more go to TARGET.data. Returns the paths."""
    import onnx

    from vmoe_prc.export.onnx_graph import MAX_BYTES

    model, path = build_onnx(open_model(request.source, request.config)), user_path(request.target)
    if model.ByteSize() >= MAX_BYTES:
        data = f"{path.name}.data"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(data).unlink(missing_ok=True)  # onnx appends
        onnx.save_model(model, os.fspath(path), save_as_external_data=True, location=data)
        return [os.fspath(path), os.fspath(path.with_name(data))]
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return [os.fspath(path)]


def build_onnx(model: TrainedModel):
    """Builds the graph with the inputs and outputs of `model.forward`, in float32.

    Raises:
      ConfigError: If the model has parts that are not written to ONNX.
    """
    from vmoe_prc.export.onnx_graph import Graph
    from vmoe_prc.export.onnx_model import add_model

    height, width = model.image_size
    grid = (height // model.patch_size[0], width // model.patch_size[1])
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    graph = Graph()
    logits, choices = add_model(graph, model.model_options((height, width)), params, INPUT, grid)
    activation = CLASSIFICATION_LOSSES.options(model.config.loss.name).ACTIVATION
    probabilities = graph.op("Sigmoid" if activation == "sigmoid" else "Softmax", logits)
    classes = ("n", len(model.classes))
    outputs: dict[str, tuple[str, str, tuple[str | int, ...]]] = {
        "logits": (logits, "float32", classes),
        "probabilities": (probabilities, "float32", classes),
    }
    for block, names in choices.items():
        shape = ("n", grid[0] * grid[1] + model.class_token, "choices")
        dtypes = {"experts": "int32", "gates": "float32", "kept": "bool"}
        for what, name in names._asdict().items():
            outputs[f"{block}_{what}"] = (name, dtypes[what], shape)
    metadata = {
        "classes": json.dumps(model.classes),
        "preprocessing": json.dumps(model.preprocessing.describe(model.image_size)),
    }
    return graph.model({INPUT: ("n", height, width, 3)}, outputs, metadata)
