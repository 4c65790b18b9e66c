"""The same numbers on a GPU as on the CPU; see `benchmarks.gpu`."""

import argparse
import concurrent.futures
import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.programs import make_batch
from vmoe_prc.config import Config
from vmoe_prc.models import create_model
from vmoe_prc.recipes import router_losses, vmoe_model
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh, replicated
from vmoe_prc.steps.train import make_gradients
from vmoe_prc.steps.views import merge_views

IMAGES, SIDE, PATCH = 16, 224, 32
METHODS = ["gather", "einsum", "dropless"]


def parity(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields differences between devices in float32, and between dispatches in bfloat16."""
    gpu, cpu = jax.devices()[0], jax.devices("cpu")[0]
    params = _params()
    runs = {
        (method, dtype, device): _lower(method, dtype, params, device)
        for method, dtype, device in [
            *((method, "float32", device) for method in METHODS for device in (gpu, cpu)),
            *((method, "bfloat16", gpu) for method in METHODS),
        ]
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = dict(zip(runs, pool.map(lambda run: run(), runs.values()), strict=True))
    for method in METHODS:
        differences = _differ(results[method, "float32", gpu], results[method, "float32", cpu])
        yield {"dispatch": method, "dtype": "float32", "of": "GPU to CPU", **differences}
    for method in METHODS:
        for other, dtype in [("gather", "bfloat16"), (method, "float32")]:
            differences = _differ(results[method, "bfloat16", gpu], results[other, dtype, gpu])
            yield {
                "dispatch": method,
                "dtype": "bfloat16",
                "of": f"to {other}, {dtype}",
            } | differences


def _model(method: str, dtype: str) -> Config:
    model = copy.deepcopy(vmoe_model("ViT-S/32, E=8, K=2, Last 1", SIDE, 1000))
    model["dtype"] = dtype
    model["encoder"]["num_layers"] = 2
    moe = model["encoder"]["moe"]
    moe["layers"] = (1,)
    # No noise, so that no device's random numbers choose an expert; room for all choices, so
    # that all kinds of dispatch compute the same.
    dispatcher = {"name": method, "capacity_factor": float(moe["num_experts"])}
    moe["router"] |= {"noise_std": 0.0, "dispatcher": dispatcher}
    return model


def _params() -> Any:
    module = create_model(_model("gather", "float32"), deterministic=True)
    with jax.default_device(jax.devices("cpu")[0]), jax.set_mesh(_mesh(jax.devices("cpu")[0])):
        images = jnp.zeros((IMAGES, SIDE, SIDE, 3))
        params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(np.asarray, params)
    # The head starts at zero, and with it most gradients.
    rng = np.random.default_rng(0)
    shape = params["head"]["kernel"].shape
    params["head"]["kernel"] = rng.normal(0, 0.05, shape).astype(np.float32)
    return params


def _mesh(device: jax.Device) -> jax.sharding.Mesh:
    return create_mesh(1, [device])


def _lower(
    method: str, dtype: str, params: Any, device: jax.Device
) -> Callable[[], dict[str, Any]]:
    """Returns what computes logits, loss, gradients and routing of PRC's objective."""
    model = create_model(_model(method, dtype), deterministic=True)
    losses = router_losses(prc=True)
    gradients = make_gradients(
        model,
        loss={"name": "sigmoid_xent"},
        balance={"importance_loss_weight": 5e-3},
        consistency=losses["consistency"],
    )

    def run(params, batch):
        images, _ = merge_views(batch["image"], batch["labels"])
        logits, routings = model.apply({"params": params}, images)
        grads, metrics = gradients(params, batch, jnp.zeros((), jnp.int32))
        experts = {name: routing.experts for name, routing in routings.items()}
        return {
            "logits": logits,
            "loss": metrics["total_loss"],
            "gradients": grads,
            "experts": experts,
        }

    mesh = _mesh(device)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        batch = jax.tree.map(np.asarray, make_batch(SIDE, IMAGES, two_views=True))
        batch = jax.device_put(batch, batch_sharding(mesh))
        own = jax.device_put(params, replicated(mesh))
        lowered = jax.jit(run).lower(own, batch)
    return lambda: jax.device_get(lowered.compile()(own, batch))


def _differ(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Compares results; norms are over all numbers of an array, or of all gradients."""
    pairs = list(zip(*(jax.tree.leaves(x["gradients"]) for x in (ours, theirs)), strict=True))
    squares = [(np.sum((a - b) ** 2), np.sum(b**2)) for a, b in pairs]
    chosen = list(zip(*(jax.tree.leaves(x["experts"]) for x in (ours, theirs)), strict=True))
    return {
        "logits": float(np.abs(ours["logits"] - theirs["logits"]).max()),
        "largest_logit": float(np.abs(theirs["logits"]).max()),
        "loss": float(abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"])),
        "gradients": float(np.sqrt(sum(d for d, _ in squares) / sum(n for _, n in squares))),
        "choices": sum(a.size for a, _ in chosen),
        "choices_that_differ": int(sum((a != b).sum() for a, b in chosen)),
    }
