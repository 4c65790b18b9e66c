"""Many small runs trained together as one program on one device.

Runs that differ in their seed and in the weights of their losses have the same arrays, so that
`jax.vmap` trains all of them at once: a GPU on which one such run waits for kernels to start
trains dozens in about the same time. Views are made on the device.
"""
