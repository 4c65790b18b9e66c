"""The FLOP count against the compiler's own, on a dense model and with experts."""

import jax
import pytest

from configs import digits_models, digits_prc
from vmoe_prc.models import create_model
from vmoe_prc.models.flops import forward_flops_per_image


@pytest.mark.parametrize("layers", [(), (1, 3)])
def test_against_the_compiler(layers):
    config = digits_prc.get_config("k=2").model.to_dict()
    config["encoder"]["moe"]["layers"] = layers
    # Room for exactly the K choices of each token: buffers hold no more than the work.
    config["encoder"]["moe"]["router"]["dispatcher"]["capacity_factor"] = 1.0
    model = create_model(config, deterministic=True)
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    lowered = jax.jit(model.apply).lower(variables, images)
    compiled = lowered.cost_analysis()["flops"]
    counted = 8 * forward_flops_per_image(config, (32, 32))
    # The compiler also counts softmax, normalisation, GELU and the one-hot bookkeeping.
    assert counted < compiled < 1.35 * counted


def test_soft_moe_counts_its_slots():
    config = digits_models.get_config("model=soft").model.to_dict()
    moe = config["encoder"]["moe"]

    def count(slots):
        moe["router"]["num_slots"] = slots
        return forward_flops_per_image(config, (32, 32))

    width, mlp_dim = config["hidden_size"], config["encoder"]["mlp_dim"]
    # Both products of an expert, and the comparison with each of the 65 tokens.
    slot = 2 * (2 * width * mlp_dim + 65 * width)
    assert count(3) - count(1) == len(moe["layers"]) * moe["num_experts"] * 2 * slot
