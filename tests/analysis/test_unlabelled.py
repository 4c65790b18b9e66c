"""Images without labels count in no measure of labels; they are not of class 0."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from vmoe_prc.analysis.capacity import drop_curve
from vmoe_prc.analysis.figures.expert_panels import specialisation_figure
from vmoe_prc.analysis.information import information_table
from vmoe_prc.analysis.opened_run import OpenedRun, open_run
from vmoe_prc.analysis.robustness import robustness_table
from vmoe_prc.analysis.routing_table import routing_table
from vmoe_prc.analysis.specialisation import specialisation
from vmoe_prc.analysis.swap import swap_test
from vmoe_prc.config import ConfigError

BLOCK = "encoderblock_1"


@dataclasses.dataclass(frozen=True)
class Changed(OpenedRun):
    """A run of which every third image has no label, or does not count."""

    change: str = "labels"

    def batches(self, split):
        for batch in super().batches(split):
            kept = jnp.arange(len(batch["mask"])) % 3 > 0
            if self.change == "none":
                yield batch | {"labels": 0 * batch["labels"]}
            elif self.change == "labels":
                yield batch | {"labels": batch["labels"] * kept[:, None]}
            else:
                yield batch | {"mask": batch["mask"] & kept}


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


def changed(run, change):
    return Changed(run.name, run.config, run.model, run.params, run.mesh, change=change)


def accuracies(run):
    """Measures of labels that do not depend on the other images of a batch."""
    table = robustness_table(run, "test", {"gaussian_noise": (0.1,)}).iloc[0]
    swapped = swap_test(run, "test").routings.set_index(["images", "routing"])
    found = {
        "information": information_table(run, "test")["class"][0],
        "capacity": drop_curve(run, "test", ()).accuracy[0],
        "robustness": table["accuracy"],
        "swap": swapped.loc[("clean", "own"), "accuracy"],
        "nll": swapped.loc[("clean", "one_expert"), "nll"],
    }
    return pd.Series(found)


@pytest.mark.slow
def test_accuracies_are_those_of_the_images_with_labels(run):
    without = accuracies(changed(run, "labels"))
    pd.testing.assert_series_equal(without, accuracies(changed(run, "mask")))
    assert (without != accuracies(run)).any()
    with pytest.raises(ConfigError, match="none of its images has a label"):
        swap_test(changed(run, "none"), "test")


def test_tables_know_no_class_of_them(run):
    rows = next(routing_table(changed(run, "labels"), "test"))
    labels = rows.groupby("image")["label"].first().to_numpy()
    np.testing.assert_array_equal(labels < 0, np.arange(len(labels)) % 3 == 0)
    found = specialisation([rows], 4, 10)
    only = specialisation([rows[rows["label"] >= 0]], 4, 10)
    pd.testing.assert_frame_equal(found.classes, only.classes)
    assert found.blocks["class_information"][0] == only.blocks["class_information"][0]
    # Their tokens count wherever no class is asked for.
    whole = specialisation([rows.assign(label=0)], 4, 10)
    pd.testing.assert_frame_equal(found.experts, whole.experts)
    pd.testing.assert_frame_equal(found.entropy, whole.entropy)

    nothing = specialisation([rows.assign(label=-1)], 4, 10)
    assert np.isnan(nothing.blocks["class_information"][0])
    assert nothing.classes["share"].isna().all()
    similarity = found.similarity.assign(measure="weights")
    nothing = nothing._replace(similarity=similarity)
    specialisation_figure(nothing, BLOCK, class_names=["a"] * 10).canvas.draw()
