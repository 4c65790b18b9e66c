"""Routers and their experts as nodes of an ONNX graph; a group is an image."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vmoe_prc.config import Config, ConfigError
from vmoe_prc.config.registry import DISPATCHERS
from vmoe_prc.export.onnx_graph import Graph
from vmoe_prc.export.onnx_layers import dense, mlp
from vmoe_prc.models.dispatch.plan import buffer_capacity
from vmoe_prc.models.routing.soft import NORM_EPSILON

Params = Mapping[str, Any]


class Choices(NamedTuple):
    """Names of the choices of the tokens of N images, as in `predict.model.ImageRouting`."""

    experts: str
    gates: str
    kept: str


class Block(NamedTuple):
    """A block with experts.

    Attributes:
      tokens: T, tokens of an image.
      size: D.
      options: Options of `MlpMoeBlock`.
      params: Its parameters.
    """

    tokens: int
    size: int
    options: Config
    params: Params


def add_experts(graph: Graph, options: Config, params: Params, x: str) -> tuple[str, Choices]:
    """Adds a block with experts.

    Args:
      graph: The graph.
      options: Options of `MlpMoeBlock`; `group_size` is the number of tokens of an image.
      params: Its parameters.
      x: Name of the tokens (N, T, D).

    Returns:
      Names of the outputs (N, T, D) and of the choices.

    Raises:
      ConfigError: If its router is not known here.
    """
    name = options["router"]["name"]
    if name not in _ROUTERS:
        allowed = f"is not written to ONNX; these are: {', '.join(sorted(_ROUTERS))}"
        raise ConfigError("config.model.encoder.moe.router.name", name, allowed)
    size = params["Mlp"]["Dense_0"]["kernel"].shape[1]
    block = Block(options["group_size"], size, options, params)
    outputs, choices = _ROUTERS[name](graph, block, x)
    if options["num_shared_experts"]:
        outputs = graph.op("Add", outputs, mlp(graph, params["SharedMlp"], x))
    return outputs, choices


def _top_experts(graph: Graph, block: Block, x: str) -> tuple[str, Choices]:
    router = block.params["Router"]
    gates = graph.op("Softmax", dense(graph, router["dense"], x), axis=-1)
    scores = gates
    if "balance_bias" in router:
        scores = graph.op("Add", gates, graph.constant(router["balance_bias"]))
    return _sparse(graph, block, x, gates, scores)


def _whole_image(graph: Graph, block: Block, x: str) -> tuple[str, Choices]:
    mean = graph.op("ReduceMean", x, graph.constant([1], np.int64), keepdims=1)
    gates = graph.op("Softmax", dense(graph, block.params["Router"]["dense"], mean), axis=-1)
    gates = graph.op("Tile", gates, graph.constant([1, block.tokens, 1], np.int64))
    return _sparse(graph, block, x, gates, gates)


def _sparse(graph: Graph, block: Block, x: str, gates: str, scores: str) -> tuple[str, Choices]:
    """Applies to each token the experts of its largest scores, and no others."""
    options, count = block.options["router"], block.options["num_experts"]
    k = options["num_selected_experts"]
    chosen = graph.ops("TopK", scores, graph.constant([k], np.int64), outputs=2)[1]
    of_chosen = graph.op("GatherElements", gates, chosen, axis=-1)
    weights = of_chosen
    if options["normalize_gates"]:
        total = graph.op("ReduceSum", weights, graph.constant([-1], np.int64), keepdims=1)
        weights = graph.op("Div", weights, total)
    rows, flat = graph.reshape(x, -1, block.size), graph.reshape(chosen, -1, k)
    weights = graph.reshape(weights, -1, k)
    outputs = graph.op("Mul", rows, graph.constant(np.float32(0)))
    zero, one, last = (graph.constant(i, np.int64) for i in (0, [1], [-1]))
    for expert in range(count):
        is_own = graph.op("Equal", flat, graph.constant(expert, np.int64))
        places = graph.op("Transpose", graph.op("NonZero", is_own), perm=[1, 0])  # (choices, 2)
        token = graph.op("Gather", places, zero, axis=1)
        own = _of_expert(block.params["Mlp"], expert)
        outputs_of_expert = mlp(graph, own, graph.op("Gather", rows, token, axis=0))
        weight = graph.op("Unsqueeze", graph.op("GatherND", weights, places), last)
        weighted = graph.op("Mul", outputs_of_expert, weight)
        index = graph.op("Unsqueeze", token, one)
        # A token chooses an expert once at most, so that no index is twice there.
        outputs = graph.op("ScatterND", outputs, index, weighted, reduction="add")
    experts = graph.op("Cast", chosen, to=6)  # int32
    kept = graph.op("GreaterOrEqual", experts, graph.constant(0, np.int32))
    return graph.reshape(outputs, -1, block.tokens, block.size), Choices(experts, of_chosen, kept)


def _expert_choice(graph: Graph, block: Block, x: str) -> tuple[str, Choices]:
    count = block.options["num_experts"]
    dispatcher = dict(block.options["router"]["dispatcher"])
    method = DISPATCHERS.options(dispatcher.pop("name"))
    capacity = buffer_capacity(block.tokens, 1, count, method(**dispatcher))
    gates = graph.op("Softmax", dense(graph, block.params["Router"]["dense"], x), axis=-1)
    by_expert = graph.op("Transpose", gates, perm=[0, 2, 1])  # (N, E, T)
    weights, tokens = graph.ops(
        "TopK", by_expert, graph.constant([capacity], np.int64), outputs=2
    )  # (N, E, C)
    values = graph.constant(np.array([0, 1], np.float32))
    taken = graph.op(
        "OneHot", tokens, graph.constant(block.tokens, np.int64), values
    )  # (N, E, C, T)
    taken = graph.reshape(taken, 0, count * capacity, block.tokens)
    buffers = graph.reshape(graph.op("MatMul", taken, x), 0, count, capacity, block.size)
    results = _all_experts(graph, block, buffers)
    weights = graph.reshape(weights, 0, count, capacity, 1)
    results = graph.reshape(graph.op("Mul", results, weights), 0, count * capacity, block.size)
    back = graph.op("Transpose", taken, perm=[0, 2, 1])
    outputs = graph.op("MatMul", back, results)
    experts = graph.ops("TopK", gates, graph.constant([count], np.int64), outputs=2)[1]
    by_place = graph.reshape(back, 0, 0, count, capacity)
    is_taken = graph.op("ReduceMax", by_place, graph.constant([-1], np.int64), keepdims=0)
    kept = graph.op(
        "Greater",
        graph.op("GatherElements", is_taken, experts, axis=-1),
        graph.constant(np.float32(0.5)),
    )
    of_chosen = graph.op("GatherElements", gates, experts, axis=-1)
    return outputs, Choices(graph.op("Cast", experts, to=6), of_chosen, kept)


def _soft(graph: Graph, block: Block, x: str) -> tuple[str, Choices]:
    router = block.params["Router"]
    size, count, slots = router["mu"].shape
    directions = router["mu"] / np.sqrt(np.sum(router["mu"] ** 2, 0, keepdims=True) + NORM_EPSILON)
    directions = (router["scale"] * directions).reshape(size, -1)
    last = graph.constant([-1], np.int64)
    length = graph.op("ReduceSumSquare", x, last, keepdims=1)
    length = graph.op("Sqrt", graph.op("Add", length, graph.constant(np.float32(NORM_EPSILON))))
    logits = graph.op("MatMul", graph.op("Div", x, length), graph.constant(directions))
    dispatch = graph.op("Transpose", graph.op("Softmax", logits, axis=1), perm=[0, 2, 1])
    buffers = graph.reshape(graph.op("MatMul", dispatch, x), 0, count, slots, size)
    results = graph.reshape(_all_experts(graph, block, buffers), 0, count * slots, size)
    outputs = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), results)
    of_experts = graph.reshape(logits, 0, 0, count, slots)
    gates = graph.op("Softmax", graph.op("ReduceLogSumExp", of_experts, last, keepdims=0), axis=-1)
    sorted_gates, experts = graph.ops("TopK", gates, graph.constant([count], np.int64), outputs=2)
    experts = graph.op("Cast", experts, to=6)
    kept = graph.op("GreaterOrEqual", experts, graph.constant(0, np.int32))
    return outputs, Choices(experts, sorted_gates, kept)


def _all_experts(graph: Graph, block: Block, buffers: str) -> str:
    """Applies each expert to its buffer: (N, E, C, D) -> (N, E, C, D)."""
    params = {
        name: {"kernel": layer["kernel"], "bias": layer["bias"][:, None]}
        for name, layer in block.params["Mlp"].items()
    }
    return mlp(graph, params, buffers)


def _of_expert(params: Params, expert: int) -> dict[str, Any]:
    return {
        name: {key: array[expert] for key, array in layer.items()} for name, layer in params.items()
    }


_ROUTERS: dict[str, Callable[[Graph, Block, str], tuple[str, Choices]]] = {
    "NoisyTopExpertsPerItemRouter": _top_experts,
    "BiasBalancedRouter": _top_experts,
    "WholeImageRouter": _whole_image,
    "NoisyTopItemsPerExpertRouter": _expert_choice,
    "SoftRouter": _soft,
}
