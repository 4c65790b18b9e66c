"""The tests check types and shapes of what the package's functions take and return."""

import beartype.roar
import jaxtyping
import numpy as np
import pytest
import typecheck

from vmoe_prc.config import schema
from vmoe_prc.losses.classification import cross_entropy
from vmoe_prc.losses.classification.options import ClassificationOptions


def test_types_of_modules_without_shapes_are_checked():
    assert schema.__name__ not in typecheck.modules_of_jaxtyping()
    with pytest.raises(beartype.roar.BeartypeCallHintParamViolation):
        schema.key_field(3)


def test_shapes_are_checked_over_all_arguments_of_a_call():
    assert cross_entropy.__name__ in typecheck.modules_of_jaxtyping()
    logits, options = np.zeros((2, 3), np.float32), ClassificationOptions()
    cross_entropy.softmax_xent(logits, logits, options)
    with pytest.raises(jaxtyping.TypeCheckError):
        cross_entropy.softmax_xent(logits, logits[:1], options)
