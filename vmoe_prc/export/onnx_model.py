"""The vision transformer with experts as an ONNX graph.

Converters from JAX see static shapes, in which either every expert computes every token or rows
are padded. ONNX has `NonZero`, whose result is as long as an expert has tokens, so that a graph
built here computes the chosen experts of a token and no others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vmoe_prc.config import Config, ConfigError
from vmoe_prc.export import onnx_routers
from vmoe_prc.export.onnx_graph import Graph
from vmoe_prc.export.onnx_layers import LAYER_NORM_EPSILON, attention, dense, layer_norm, mlp
from vmoe_prc.models.vit import sincos2d_embedding

Params = Mapping[str, Any]
# Options of the encoder, its experts and its router of which only one value is written.
_WRITTEN = {
    "gelu": "tanh",
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "attention_qk_norm": False,
    "num_registers": 0,
    "layer_scale": None,
    "ensemble_size": 1,
}


def add_model(
    graph: Graph, options: Config, params: Params, pixels: str, grid: tuple[int, int]
) -> tuple[str, dict[str, onnx_routers.Choices]]:
    """Adds the model.

    Args:
      graph: The graph.
      options: Options of the model, see `TrainedModel.model_options`.
      params: Nested parameters, as NumPy arrays.
      pixels: Name of the images (N, H, W, 3).
      grid: (rows, columns) of patches.

    Returns:
      Names of the logits (N, classes), and of the choices of each block with experts.

    Raises:
      ConfigError: If the model has parts that are not written to ONNX.
    """
    if options["name"] != "VisionTransformerMoe":
        raise _unknown("name", options["name"])
    _check(options)
    x = _embed(graph, options, params, pixels, grid)
    encoder, inner = options["encoder"], params["Encoder"]
    x = _add_positions(graph, encoder["position_emb"], inner, x, grid, options)
    choices = {}
    for block in range(encoder["num_layers"]):
        name = f"encoderblock_{block}"
        own = inner[name]
        y = layer_norm(graph, own["LayerNorm_0"], x)
        x = graph.op("Add", attention(graph, own["SelfAttention"], y, y), x)
        y = layer_norm(graph, own["LayerNorm_1"], x)
        if block in encoder["moe"]["layers"]:
            y, choices[name] = onnx_routers.add_experts(graph, encoder["moe"], own["Moe"], y)
        else:
            y = mlp(graph, own["Mlp"], y)
        x = graph.op("Add", x, y)
    x = layer_norm(graph, inner["encoder_norm"], x)
    x = _pool(graph, options["classifier"], params, x)
    if options["representation_size"] is not None:
        x = graph.op("Tanh", dense(graph, params["pre_logits"], x))
    return dense(graph, params["head"], x), choices


def _check(options: Config) -> None:
    """Refuses options that change the model and are not written."""
    encoder = options["encoder"]
    moe = encoder["moe"]
    if (dtype := moe["router"].get("dtype", "float32")) != "float32":
        raise _unknown("encoder.moe.router.dtype", dtype)
    sections = {"encoder.": encoder, "encoder.moe.": moe, "encoder.moe.router.": moe["router"]}
    for prefix, section in sections.items():
        for name, value in _WRITTEN.items():
            if name in section and section[name] != value:
                raise _unknown(prefix + name, section[name])


def _embed(
    graph: Graph, options: Config, params: Params, pixels: str, grid: tuple[int, int]
) -> str:
    kernel = np.transpose(params["embedding"]["kernel"], (3, 2, 0, 1))
    x = graph.op("Transpose", pixels, perm=[0, 3, 1, 2])
    x = graph.op(
        "Conv",
        x,
        graph.constant(kernel),
        graph.constant(params["embedding"]["bias"]),
        strides=list(options["patch_size"]),
    )
    x = graph.reshape(x, 0, 0, grid[0] * grid[1])
    x = graph.op("Transpose", x, perm=[0, 2, 1])  # (N, P, D)
    if options["classifier"] != "token":
        return x
    first = graph.op("Slice", x, *(graph.constant([i], np.int64) for i in (0, 1, 1)))
    zero = graph.op("Mul", first, graph.constant(np.float32(0)))
    return graph.op("Concat", graph.op("Add", zero, graph.constant(params["cls"])), x, axis=1)


def _add_positions(
    graph: Graph, options: Config, params: Params, x: str, grid: tuple[int, int], model: Config
) -> str:
    name = options["name"]
    if name == "none":
        return x
    if name == "learned":
        return graph.op("Add", x, graph.constant(params["posembed_input"]["pos_embedding"]))
    if name == "sincos2d":
        size = model["hidden_size"]
        positions = np.asarray(sincos2d_embedding(*grid, size, options["temperature"]))
        if model["classifier"] == "token":
            positions = np.concatenate([np.zeros((1, size), np.float32), positions])
        return graph.op("Add", x, graph.constant(positions[None], np.float32))
    raise _unknown("encoder.position_emb.name", name)


def _pool(graph: Graph, classifier: str, params: Params, x: str) -> str:
    if classifier == "token":
        return graph.op("Gather", x, graph.constant(0, np.int64), axis=1)
    if classifier == "gap":
        return graph.op("ReduceMean", x, graph.constant([1], np.int64), keepdims=0)
    head = params["MapHead"]
    query = graph.constant(head["probe"])
    x = attention(graph, head["MultiHeadDotProductAttention"], query, x)
    y = mlp(graph, head["Mlp"], layer_norm(graph, head["LayerNorm"], x))
    return graph.op("Gather", graph.op("Add", x, y), graph.constant(0, np.int64), axis=1)


def _unknown(field: str, value: Any) -> ConfigError:
    return ConfigError(f"config.model.{field}", value, "is not written to ONNX")
