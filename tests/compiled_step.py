"""Compiles the train step for meshes of virtual devices and prints, as JSON, what is in it.

    XLA_FLAGS=--xla_force_host_platform_device_count=64 python tests/compiled_step.py \
        '{"devices": [8, 64], "partitions": 4, "dispatcher": "gather", "shard_kernels": false}'
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import tiny

from vmoe_prc.compile.hlo import collectives
from vmoe_prc.models.traffic import step_traffic
from vmoe_prc.optimizer import create_optimizer
from vmoe_prc.runtime.mesh import batch_sharding, create_mesh
from vmoe_prc.steps.state import abstract_train_state
from vmoe_prc.steps.train import make_train_step

PAIRS_PER_DEVICE = 2
OPTIMIZER = {**tiny.OPTIMIZER, "name": "adam"}
del OPTIMIZER["momentum"]


def compiled_step(num_devices, partitions, dispatcher, shard_kernels):
    mesh = create_mesh(partitions, jax.devices()[:num_devices])
    model = tiny.tiny_model(dispatcher=dispatcher).clone(shard_kernels=shard_kernels)
    optimizer = create_optimizer(total_steps=10, **OPTIMIZER)
    pairs = PAIRS_PER_DEVICE * num_devices
    image_shape = (2 * pairs, 32, 32, 3)
    consistency = {"name": "prc", "pair_class_tokens": True}
    step = make_train_step(
        model,
        optimizer,
        loss={"name": "softmax_xent"},
        consistency=consistency,
        ema_decay=0.9,
    )
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh))
        for name, shape in {
            "image": (pairs, 2, 32, 32, 3),
            "labels": (pairs, 10),
            "view_from_image": (pairs, 2, 3, 3),
        }.items()
    }
    with jax.set_mesh(mesh):
        state = abstract_train_state(model, optimizer, image_shape, mesh, tiny.RULES, True)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        compiled = jitted.lower(state, batch).compile()
    traffic = step_traffic(model, state.params, mesh, image_shape, consistency["name"])
    memory = compiled.memory_analysis()
    return {
        "mesh": dict(mesh.shape),
        "collectives": [dataclasses.asdict(x) for x in collectives(compiled.as_text())],
        "traffic": [row.__dict__ for row in traffic],
        "num_params": len(jax.tree.leaves(state.params)),
        "flops": compiled.cost_analysis()["flops"],
        "bytes": {
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        },
    }


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    sizes = options.pop("devices")
    print(json.dumps([compiled_step(size, **options) for size in sizes]))
