"""Parameters that do not fit a model, or are not finite, are refused by name."""

import flax.linen as nn
import numpy as np
import pytest

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.params import check_params

GOOD = {"params/kernel": np.ones((3, 2), np.float32), "params/bias": np.ones(2, np.float32)}


def test_parameters_that_fit():
    check_params(nn.Dense(2), (1, 4, 4, 3), GOOD, "x")


@pytest.mark.parametrize(
    ("bias", "message"),
    [(np.ones(3), "does not fit"), (np.array([1, np.nan], np.float32), "is not finite")],
)
def test_other_shapes_and_nan_are_named(bias, message):
    with pytest.raises(CheckpointError, match=f"x: params/bias {message}"):
        check_params(nn.Dense(2), (1, 4, 4, 3), GOOD | {"params/bias": bias}, "x")
