"""The picture of a run: of two views, of one, and in TensorBoard."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.figures.training import make_training_picture
from vmoe_prc.models.routing import Routing
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.workdir.metrics import read_metrics


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


def draw(run, split, options=None, **changes):
    with jax.set_mesh(run.mesh):
        batch = next(run.batches(split)) | changes
        picture = make_training_picture(run.model, sharding=replicated(run.mesh), **(options or {}))
        return picture(run.params, batch)()


def test_two_views_are_joined(run):
    figure = draw(run, "test_pairs")
    assert len(figure.axes) == 3 * 4
    assert "matched patch pairs" in figure.texts[-1].get_text()


def test_one_view_is_a_map(run):
    figure = draw(run, "test")
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["image", "encoderblock_1"]


class RoutesEverythingTo0(nn.Module):
    """A model whose two blocks send all tokens of the one group to expert 0."""

    patch_size: tuple[int, int] = (4, 4)

    @property
    def encoder(self):
        return {"moe": {"num_experts": 2}}

    def __call__(self, images):
        tokens = images.shape[1] * images.shape[2] // 16
        gates = jnp.zeros((1, len(images) * tokens, 2))
        experts = jnp.zeros((1, len(images) * tokens, 1), jnp.int32)
        routing = Routing(gates, None, gates, gates, experts, experts == 0)
        return jnp.zeros((len(images), 10)), {"encoderblock_9": routing, "encoderblock_10": routing}


def test_blocks_are_drawn_by_number():
    """A jitted step returns them by name, in which 10 comes before 9."""
    batch = {"image": np.zeros((3, 8, 8, 3)), "labels": np.eye(3), "mask": np.ones(3, bool)}
    figure = make_training_picture(RoutesEverythingTo0())({}, batch)()
    labels = [axis.get_ylabel() for axis in figure.axes[::3]]
    assert labels == ["image", "encoderblock_9", "encoderblock_10"]


def test_only_images_are_drawn(run):
    mask = np.zeros(64, bool)
    mask[[5, 9]] = True
    batch = next(run.batches("test"))
    classes = np.asarray(batch["labels"]).argmax(-1)[[5, 9]]
    figure = draw(run, "test", mask=jax.device_put(mask, batch["mask"].sharding))
    assert [axis.get_title() for axis in figure.axes[:2]] == [f"class {c}" for c in classes]


def test_pixels_of_any_range_and_names_of_classes(run):
    """Images in 0 to 255 look as in [-1, 1]; an image without labels is of no class."""
    batch = next(run.batches("test"))
    names = [f"${name}$_\\frac$" for name in range(10)]  # No formula.
    images = jax.device_put((batch["image"] + 1) * 127.5, batch["image"].sharding)
    labels = batch["labels"].at[1].set(0)
    options = {"value_range": (0.0, 255.0), "class_names": names}
    figure, expected = draw(run, "test", options, image=images, labels=labels), draw(run, "test")
    for panel, other in zip(figure.axes[:3], expected.axes[:3], strict=True):
        shown, right = (np.asarray(axes.images[0].get_array()) for axes in (panel, other))
        np.testing.assert_allclose(shown, right, atol=1e-6)
        assert shown.std() > 0.1
    classes = np.asarray(labels).argmax(-1)
    figure.canvas.draw()
    titles = [axes.get_title().replace("\\$", "$") for axes in figure.axes[:3]]
    assert titles == [names[classes[0]], "no label", names[classes[2]]]


def test_a_model_without_experts_has_none(run):
    encoder = {**run.model.encoder, "moe": {**run.model.encoder["moe"], "layers": ()}}
    dense = dataclasses.replace(run.model, encoder=encoder)
    batch = next(run.batches("test"))
    params = jax.jit(dense.init)(jax.random.key(0), batch["image"])["params"]
    with jax.set_mesh(run.mesh):
        assert make_training_picture(dense)(params, batch) is None


def test_evaluations_are_drawn_in_tensorboard(finished):
    workdir, _ = finished
    events = EventAccumulator(str(workdir / "tensorboard")).Reload()
    drawn = events.Tensors("routing")
    evaluated = [m["step"] for m in read_metrics(workdir / "metrics.jsonl") if "test/loss" in m]
    assert [event.step for event in drawn] == evaluated == [4, 6]
    for event in drawn:
        width, _, png = event.tensor_proto.string_val
        assert int(width) > 500 and png.startswith(b"\x89PNG")
