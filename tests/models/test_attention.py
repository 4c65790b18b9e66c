"""Attention on NVIDIA GPUs, lowered where there is none."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import AbstractDevice, AbstractMesh

from vmoe_prc.models.attention import attention
from vmoe_prc.runtime.mesh import AXES, AXIS_TYPES


@pytest.mark.parametrize("tokens", [1, 17, 50, 65, 145, 197, 577])
def test_cudnn_takes_every_number_of_tokens_in_training(tokens, monkeypatch):
    """JAX asks the GPU for its version and kind; it refuses odd lengths in training."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1, 1), AXES, axis_types=AXIS_TYPES, abstract_device=device)
    x = jax.ShapeDtypeStruct((2, tokens, 4, 64), jnp.bfloat16)

    def total(query, key, value):
        return jnp.sum(attention(query, key, value).astype(jnp.float32))

    with jax.sharding.use_abstract_mesh(mesh):
        step = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(x, x, x)
        text = step.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert all(gradient.shape == x.shape for gradient in step.out_info)
