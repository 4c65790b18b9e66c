"""A program whose process 0 prepares for longer than gloo waits between first uses, 30 s."""

import argparse
import time

import jax
import jax.numpy as jnp

from vmoe_prc.runtime import processes
from vmoe_prc.runtime.mesh import create_mesh, replicated

SECONDS = 33


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator_address")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    args = parser.parse_args()
    processes.connect(args.coordinator_address, args.num_processes, args.process_id)
    with processes.raise_everywhere(), processes.process_zero_first():
        if processes.is_main_process():
            time.sleep(SECONDS)
    mesh = create_mesh(1)
    processes.connect_devices(mesh)
    ones = jax.jit(lambda: jnp.ones(mesh.size), out_shardings=replicated(mesh))()
    print(int(processes.gathered(ones).sum()))
