"""Rules that map the arrays of a checkpoint to the arrays of a model."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from vmoe_prc.checkpoints.transfer import format_table, transfer
from vmoe_prc.config import ConfigError
from vmoe_prc.recipes import FINE_TUNE_RULES, upcycling_rules

RNG = np.random.default_rng(0)
EMBEDDING = "params/Encoder/posembed_input/pos_embedding"
SAME = [("^(.*)$", r"\1")]


def shapes(**arrays):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in arrays.items()}


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_renames_and_reports_what_is_unused_and_new():
    source = {"old/a": random(2), "old/b": random(3), "step": random()}
    target = shapes(**{"new/a": (2,), "new/b": (3,), "new/c": (4,)})
    rules = [("^step$", None), (r"^old/(.*)", r"new/\1")]
    arrays, moved = transfer(source, target, rules, raise_if_target_unmatched=False)
    assert set(arrays) == {"new/a", "new/b"}
    np.testing.assert_array_equal(arrays["new/b"], source["old/b"])
    assert {m.target or m.sources[0]: m.action for m in moved} == {
        "new/a": "loaded",
        "new/b": "loaded",
        "new/c": "new",
        "step": "unused",
    }
    assert format_table(moved).splitlines()[-1] == "2 loaded, 1 new, 1 unused"


@pytest.mark.parametrize("class_token", [0, 1])
def test_position_embeddings_are_resized_between_their_corners(class_token):
    source = {EMBEDDING: random(1, 16 + class_token, 8)}
    target = shapes(**{EMBEDDING: (1, 49 + class_token, 8)})
    arrays, (moved,) = transfer(source, target, FINE_TUNE_RULES)
    assert moved.action == "vit_zoom"
    old = source[EMBEDDING][0, class_token:].reshape(4, 4, 8)
    new = arrays[EMBEDDING][0, class_token:].reshape(7, 7, 8)
    # Every second point of the fine grid is a point of the coarse one.
    np.testing.assert_allclose(new[::2, ::2], old, atol=1e-6)
    np.testing.assert_allclose(new[1, 0], (old[0, 0] + old[1, 0]) / 2, atol=1e-6)
    np.testing.assert_array_equal(
        arrays[EMBEDDING][:, :class_token], source[EMBEDDING][:, :class_token]
    )


def test_embeddings_are_resized_between_grids_of_as_many_patches():
    """A horizontal ramp stays one: copied row by row it would begin anew in each row."""
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None], (4, 4, 2)).reshape(1, 16, 2)
    source = {EMBEDDING: np.concatenate([np.full((1, 1, 2), 9, np.float32), ramp], axis=1)}
    target = shapes(**{EMBEDDING: (1, 17, 2)})
    arrays, (moved,) = transfer(source, target, FINE_TUNE_RULES, grid=(2, 8))
    assert moved.action == "vit_zoom"
    assert (arrays[EMBEDDING][0, 0] == 9).all()
    rows = arrays[EMBEDDING][0, 1:, 0].reshape(2, 8)
    np.testing.assert_allclose(rows, [np.linspace(0, 3, 8)] * 2, atol=1e-6)
    # And back, from a grid that only the rule knows.
    back = {EMBEDDING: arrays[EMBEDDING]}
    rule = [("^.*posembed.*$", EMBEDDING, "vit_zoom", (2, 8))]
    arrays, _ = transfer(back, target, rule, grid=(4, 4))
    np.testing.assert_allclose(
        arrays[EMBEDDING][0, 1:, 0].reshape(4, 4), [[0, 1, 2, 3]] * 4, atol=1e-6
    )


def test_the_grid_of_a_rectangle_must_be_known():
    source, target = {EMBEDDING: random(1, 32, 8)}, shapes(**{EMBEDDING: (1, 32, 8)})
    with pytest.raises(ConfigError, match=r"32 tokens are no square grid.* give the rule its grid"):
        transfer(source, target, FINE_TUNE_RULES, grid=(4, 8))


def test_embeddings_of_the_same_grid_stay_as_they_are():
    source = {EMBEDDING: random(1, 17, 8)}
    arrays, (moved,) = transfer(source, shapes(**{EMBEDDING: (1, 17, 8)}), FINE_TUNE_RULES)
    assert moved.action == "loaded"
    np.testing.assert_array_equal(arrays[EMBEDDING], source[EMBEDDING])


def test_each_expert_of_an_upcycled_model_is_a_copy_of_the_mlp():
    block = "params/Encoder/encoderblock_{}/{}"
    source = {block.format(i, "Mlp/Dense_0/kernel"): random(4, 6) for i in (1, 11)}
    target = shapes(
        **{
            block.format(1, "Moe/Mlp/Dense_0/kernel"): (3, 4, 6),
            block.format(1, "Moe/Router/dense/kernel"): (4, 3),
            block.format(11, "Mlp/Dense_0/kernel"): (4, 6),
        }
    )
    arrays, _ = transfer(source, target, upcycling_rules((1,), 3), raise_if_target_unmatched=False)
    experts = arrays[block.format(1, "Moe/Mlp/Dense_0/kernel")]
    for expert in experts:
        np.testing.assert_array_equal(expert, source[block.format(1, "Mlp/Dense_0/kernel")])
    assert set(arrays) == set(target) - {block.format(1, "Moe/Router/dense/kernel")}


def test_stack_joins_layers_in_the_order_of_their_numbers():
    source = {f"layer_{i}/kernel": np.full((2,), i, np.float32) for i in range(12)}
    rules = [(r"layer_\d+/kernel", "layers/kernel", "stack", 0)]
    arrays, (moved,) = transfer(source, shapes(**{"layers/kernel": (12, 2)}), rules)
    np.testing.assert_array_equal(arrays["layers/kernel"][:, 0], np.arange(12))
    assert len(moved.sources) == 12


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (("a", "b", "reshape"), lambda x: x.reshape(2, 6)),
        (("a", "b", "squeeze", 0), lambda x: x[0]),
        (("a", "b", "zoom"), lambda x: scipy.ndimage.zoom(x, (1, 1.5, 2), order=1)),
        (
            ("a", "b", "expand_tile", (0, 2), (2, 3)),
            lambda x: np.tile(x[None, :, None], (2, 1, 3, 1, 1)),
        ),
    ],
)
def test_transformations(rule, expected):
    x = random(1, 4, 3)
    wanted = expected(x)
    arrays, _ = transfer({"a": x}, shapes(b=wanted.shape), [rule])
    np.testing.assert_array_equal(arrays["b"], wanted)


@pytest.mark.parametrize(
    ("source", "rules", "message"),
    [
        ({"a": (3,)}, SAME, r"a \(3,\) -> a \(2,\)"),
        ({"z": (2,)}, SAME, "which the model does not have"),
        ({"a": (2,)}, [("^b", "b")], "no rule matches"),
        ({"b": (2,)}, [("b", None)], "not in the checkpoint"),
        ({"b": (2,), "c": (2,)}, [("[bc]", "a")], "both become 'a'"),
        ({"a": (2,)}, [("(", "a")], "not a regular expression"),
        ({"a": (2,)}, [("a", "a", "expand_tyle")], "did you mean 'expand_tile'"),
        ({"a": (2,)}, ["a"], "expected .pattern, replacement"),
        ({"a": (1, 5, 2)}, [("a", "a", "vit_zoom")], "vit_zoom fails"),
    ],
)
def test_errors_name_both_sides(source, rules, message):
    source = {name: np.zeros(shape, np.float32) for name, shape in source.items()}
    with pytest.raises(ConfigError, match=message):
        transfer(source, shapes(a=(2,)), rules)


@pytest.mark.parametrize("level", ["", "params/"])
def test_rules_written_for_v_moe_work_as_they_are(level):
    """Their files of parameters lack the level that ours add when they are read."""
    rules = [
        ("head", ""),
        ("^(.*/pos_embedding)$", rf"{level}\1", "vit_zoom"),
        ("^(Encoder/.*)$", rf"{level}\1"),
        ("^(.*)$", rf"{level}\1"),
    ]
    norm, cls = "params/Encoder/encoder_norm/bias", "params/cls"
    source = {"params/head/bias": random(3), norm: random(8), cls: random(1, 1, 8)}
    source[EMBEDDING] = random(1, 5, 8)
    target = shapes(**{norm: (8,), cls: (1, 1, 8), EMBEDDING: (1, 17, 8)})
    arrays, _ = transfer(source, target, rules)
    np.testing.assert_array_equal(arrays[norm], source[norm])
    np.testing.assert_array_equal(arrays[cls], source[cls])
    np.testing.assert_array_equal(arrays[EMBEDDING][:, 0], source[EMBEDDING][:, 0])


def test_the_embedding_of_a_missing_class_token_is_drawn():
    source = {EMBEDDING: random(1, 16, 8)}
    target = shapes(**{EMBEDDING: (1, 17, 8)})
    arrays, _ = transfer(source, target, FINE_TUNE_RULES)
    np.testing.assert_array_equal(arrays[EMBEDDING][:, 1:], source[EMBEDDING])
    # What V-MoE's program draws.
    drawn = 0.02 * jax.random.normal(jax.random.PRNGKey(0), (1, 1, 8))
    np.testing.assert_array_equal(arrays[EMBEDDING][:, :1], drawn)


def test_noisy_copies_differ_by_a_share_of_the_spread():
    dense = "params/Encoder/encoderblock_1/Mlp/Dense_0/kernel"
    experts = "params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
    source, target = {dense: random(64, 64)}, shapes(**{experts: (4, 64, 64)})
    arrays, (moved,) = transfer(source, target, upcycling_rules((1,), 4, noise=0.1))
    noise = arrays[experts] - source[dense]
    assert moved.action == "noisy_copies"
    np.testing.assert_allclose(noise.std(axis=(1, 2)), 0.1 * source[dense].std(), rtol=0.1)
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.1
    again, _ = transfer(source, target, upcycling_rules((1,), 4, noise=0.1))
    np.testing.assert_array_equal(again[experts], arrays[experts])
