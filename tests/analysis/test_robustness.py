"""Perturbations of known effect, attacks within their bounds, and the command."""

import dataclasses
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from vmoe_prc import analyze
from vmoe_prc.analysis import robustness
from vmoe_prc.analysis.attacks import make_attack
from vmoe_prc.analysis.choices import make_routing_step
from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.analysis.perturbations import CORRUPTIONS, PERTURBATIONS
from vmoe_prc.analysis.robustness import robustness_table
from vmoe_prc.config import ConfigError
from vmoe_prc.losses import classification_loss


def images(count=2, size=32):
    """Tinted waves of light and dark: JPEG keeps few of the pixels that colour is stored in."""
    rng = np.random.default_rng(0)
    row, col = np.mgrid[:size, :size][:, None] / size  # (1, H, W) each
    y, x, phase = (rng.uniform(*bounds, (count, 1, 1)) for bounds in ((1, 3), (1, 3), (0, 1)))
    waves = np.sin(2 * np.pi * (y * row + x * col + phase))[..., None]
    tint = rng.uniform(-0.3, 0.3, (count, 1, 1, 3))
    return (0.5 + 0.325 * waves + tint / 2).astype(np.float32)


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


needs_corruptions = pytest.mark.skipif(
    importlib.util.find_spec("imagecorruptions") is None and "CI" not in os.environ,
    reason="needs pip install --no-deps imagecorruptions-imaug",
)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=needs_corruptions if kind.startswith("imagenet_c/") else ())
        for kind in PERTURBATIONS
    ],
)
def test_level_zero_changes_little_and_the_highest_much(kind):
    x, perturbation = images(), PERTURBATIONS[kind]
    same = np.asarray(perturbation.apply(x, perturbation.levels[0], 0))
    changed = np.asarray(perturbation.apply(x, perturbation.levels[-1], 0))
    assert same.shape == changed.shape == x.shape and changed.dtype == np.float32
    # Pixels of 8 bits are rounded twice by compression at quality 100.
    assert np.abs(same - x).mean() < (2 / 255 if kind == "jpeg" else 1e-5)
    assert np.abs(changed - x).mean() > 3 * np.abs(same - x).mean()
    assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6


def test_shift_moves_pixels_exactly():
    x = images()
    moved = np.asarray(PERTURBATIONS["shift"].apply(x, 3.0, 0))
    np.testing.assert_allclose(moved[:, :, 3:], x[:, :, :-3], atol=1e-6)
    np.testing.assert_allclose(moved[:, :, :3], x[:, :, 2::-1], atol=1e-6)


def test_rotation_by_a_right_angle():
    x = images()
    # A quarter of the circle through the middle of the edges.
    turned = np.asarray(PERTURBATIONS["rotation"].apply(x, np.pi / 2 * 16, 0))
    np.testing.assert_allclose(turned, np.rot90(x, axes=(1, 2)), atol=1e-4)


def test_noise_has_the_given_deviation():
    x = np.full((2, 64, 64, 3), 0.5, np.float32)
    noise = np.asarray(PERTURBATIONS["gaussian_noise"].apply(x, 0.1, 3))
    assert noise.std() == pytest.approx(0.1, rel=0.03)


@needs_corruptions
def test_corruptions_repeat_with_their_seed():
    assert len(CORRUPTIONS) == 15
    for name in ("gaussian_noise", "impulse_noise", "glass_blur", "frost"):
        apply = PERTURBATIONS[f"imagenet_c/{name}"].apply
        np.testing.assert_array_equal(apply(images(), 3, 1), apply(images(), 3, 1))
        assert (apply(images(), 3, 1) != apply(images(), 3, 2)).any()


@pytest.mark.slow
def test_attacks_stay_within_their_bounds_and_raise_the_loss(run):
    batch = next(iter(run.batches("test")))
    x, labels = batch["image"], batch["labels"]

    @jax.jit
    def loss(x):
        logits, _ = run.model.apply({"params": run.params}, x)
        return classification_loss(logits, labels, name="softmax_xent").sum()

    losses = [loss(x)]
    for steps in (1, 10):
        attack = jax.jit(make_attack(run.model, {"name": "softmax_xent"}, steps))
        attacked = attack(run.params, x, labels, 8.0)
        assert float(jnp.abs(attacked - x).max()) <= 2 * 8 / 255 + 1e-6
        losses.append(loss(attacked))
    assert losses[0] < losses[1] < losses[2] * 1.001
    model, options = run.model, {"name": "softmax_xent"}
    straight = make_attack(model, options, 4, projected=False)(run.params, x, labels, 8.0)
    # No step is cut off: the farthest pixels went all of them, also beyond white.
    assert float(jnp.abs(straight - x).max()) == pytest.approx(2 * 8 / 255, rel=1e-4)
    assert float(straight.max()) > 1
    assert loss(straight) > losses[0]


@pytest.mark.parametrize("kind", ["gaussian_noise", "shift", "fgsm"])
def test_levels_are_of_the_value_range_of_the_data(run, kind):
    """Images of [-1, 1] and the same images of [0, 255] change by the same share of the range."""
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        process = config.dataset.test.process
        config.dataset.test.process = process.replace("value_range(-1, 1)", "value_range(0, 255)")
    assert config.dataset.test.process != process
    bytes_run = dataclasses.replace(run, config=config)
    batches = [next(r.batches("test")) for r in (run, bytes_run)]
    level = {"gaussian_noise": 0.1, "shift": 2.0, "fgsm": 8.0}[kind]
    with jax.set_mesh(run.mesh):
        unit, others = (
            np.asarray(robustness.make_perturbation(r, "test", kind, 0)(batch, level, 0))
            for r, batch in zip((run, bytes_run), batches, strict=True)
        )
    if kind == "fgsm":  # Its directions depend on the model, which knows one range only.
        change = np.abs(others - np.asarray(batches[1]["image"]))
        assert change.max() == pytest.approx(level, rel=1e-5)
        assert others.min() >= 0 and others.max() <= 255
    else:
        np.testing.assert_allclose(others, (unit + 1) * 127.5, atol=1e-3)


@pytest.mark.slow
def test_unchanged_images_change_nothing_and_noise_does(run):
    frame = robustness_table(run, "test", {"gaussian_noise": (0, 0.5), "fgsm": (0, 8)})
    frame = frame[frame["block"] == "all"].set_index(["perturbation", "level"])
    still, noisy = frame.loc[("gaussian_noise", 0.0)], frame.loc[("gaussian_noise", 0.5)]
    assert (still[["changed", "changed_first", "distance", "logit_distance", "jump"]] == 0).all()
    assert noisy["changed"] > 0 and noisy["changed_first"] > 0
    assert still["kappa"] == still["kappa_place"] == 1
    assert 0 < noisy["kappa_place"] <= noisy["kappa"] < 1
    for name in ("kappa", "kappa_place"):
        assert still[f"{name}_low"] == still[f"{name}_high"] == pytest.approx(1)
        assert noisy[f"{name}_low"] < noisy[name] < noisy[f"{name}_high"]
    assert noisy["jump"] == pytest.approx(noisy["logit_distance"] / noisy["distance"], rel=0.2)
    assert frame.loc[("fgsm", 8.0), "accuracy"] <= still["accuracy"]


@pytest.mark.slow
def test_the_command_compares_runs(finished, tmp_path, capsys):
    path = tmp_path / "curves.csv"
    workdirs = [f"--workdir={finished[0]}"] * 2
    arguments = [*workdirs, "--perturbation=shift=0,1", f"--output={path}"]
    assert analyze.main(["robustness", *arguments]) == 0
    frame = pd.read_csv(path)
    assert len(frame) == 2 * 2 * 2 and set(frame["level"]) == {0, 1}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["shifd", "shift=a"])
def test_errors(finished, argument, capsys):
    arguments = [f"--workdir={finished[0]}", f"--perturbation={argument}"]
    assert analyze.main(["robustness", *arguments]) == 2
    assert f"--perturbation = '{argument}'" in capsys.readouterr().err


def test_two_views_are_refused(run):
    with pytest.raises(ConfigError, match="needs one view"):
        robustness_table(run, "test_pairs", {"shift": (0,)})


def test_missing_library_of_corruptions(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps imagecorruptions-imaug"):
        robustness_table(run, "test", {"imagenet_c/fog": (0, 1)})


def test_images_too_small_for_corruptions(run, monkeypatch):
    monkeypatch.setattr(robustness, "SMALLEST_CORRUPTED", 64)
    with pytest.raises(ConfigError, match="at least 64 pixels a side, not 32"):
        robustness_table(run, "test", {"imagenet_c/fog": (0, 1)})


@pytest.mark.parametrize("experts_choose", [False, True])
def test_selected_experts(run, experts_choose):
    moe = dict(run.model.encoder["moe"])
    if experts_choose:
        moe["router"] = {"name": "NoisyTopItemsPerExpertRouter", "noise_std": 0.0}
    model = dataclasses.replace(run.model, encoder={**run.model.encoder, "moe": moe})
    batch = next(run.batches("test"))
    _, choices = jax.jit(make_routing_step(model))(run.params, batch["image"])
    chosen = choices["encoderblock_1"]
    expected = chosen.kept if experts_choose else np.ones(chosen.kept.shape, bool)
    np.testing.assert_array_equal(chosen.selected, expected)
    assert experts_choose == (not np.asarray(chosen.selected).all())
