"""Numbers of single arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_prc.steps.summaries import summarize

TREE = {"params": {"head": {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])}, "scale": jnp.ones(())}}


def test_rules_are_regexes_with_operations():
    rules = [
        "scale$",
        ("kernel", "norm"),
        ("kernel", ("norm", 0)),
        ("kernel", ("max", (1,)), "sum"),
    ]
    found = {name: float(x) for name, x in summarize(TREE, rules, 2).items()}
    kernel = "params/head/kernel"
    assert found == {
        "params/scale": 1.0,
        f"{kernel}_norm": pytest.approx(np.sqrt(29)),
        f"{kernel}_norm(0,)[0]": 5.0,
        f"{kernel}_norm(0,)[1]": 2.0,
        f"{kernel}_max(1,)_sum": 7.0,
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("kernel", "gives 4 numbers for params/head/kernel"),
        (("kernel", "median"), "'median'"),
        *((rule, "expected a regex, or") for rule in (0, (), (3, "norm"), None, {"kernel": 1})),
        *((("kernel", x), "expected an operation, or") for x in (1, ("norm",), ("norm", "ab"))),
        (("kernel", ("norm", (1.5,))), "expected an operation, or"),
        (("kernel", ("norm", 7)), "out of bounds"),
    ],
)
def test_errors(rule, message):
    with pytest.raises(ValueError, match=message):
        summarize(TREE, [rule])
