"""Layers of the model as nodes of an ONNX graph; parameters have Flax's names and shapes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vmoe_prc.export.onnx_graph import Graph

Params = Mapping[str, Any]
LAYER_NORM_EPSILON = 1e-6  # flax's


def dense(graph: Graph, params: Params, x: str) -> str:
    """Multiplies the last axis by a kernel and adds a bias."""
    product = graph.op("MatMul", x, graph.constant(params["kernel"]))
    return graph.op("Add", product, graph.constant(params["bias"])) if "bias" in params else product


def layer_norm(graph: Graph, params: Params, x: str) -> str:
    """Normalises the last axis."""
    scale, bias = graph.constant(params["scale"]), graph.constant(params["bias"])
    epsilon = LAYER_NORM_EPSILON
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def mlp(graph: Graph, params: Params, x: str) -> str:
    """Applies `MlpBlock`; with parameters of E experts, to (..., E, rows, D)."""
    hidden = graph.op("Gelu", dense(graph, params["Dense_0"], x), approximate="tanh")
    return dense(graph, params["Dense_1"], hidden)


def attention(graph: Graph, params: Params, queries: str, inputs: str) -> str:
    """Applies flax's attention of heads: queries (N or 1, T, D), inputs (N, S, D) -> (N, T, D)."""
    size, heads, head_size = params["query"]["kernel"].shape

    def project(name: str, x: str, perm: list[int]) -> str:
        kernel = params[name]["kernel"].reshape(size, -1)
        y = dense(graph, {"kernel": kernel, "bias": params[name]["bias"].reshape(-1)}, x)
        return graph.op("Transpose", graph.reshape(y, 0, 0, heads, head_size), perm=perm)

    query = project("query", queries, [0, 2, 1, 3])
    key = project("key", inputs, [0, 2, 3, 1])
    value = project("value", inputs, [0, 2, 1, 3])
    scale = graph.constant(np.float32(1 / math.sqrt(head_size)))
    scores = graph.op("MatMul", graph.op("Mul", query, scale), key)
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    kernel = params["out"]["kernel"].reshape(-1, size)
    return dense(
        graph, {"kernel": kernel, "bias": params["out"]["bias"]}, graph.reshape(mixed, 0, 0, -1)
    )
