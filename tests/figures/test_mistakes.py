"""The figures of mistakes: of a run, and of any counts."""

import dataclasses

import jax
import numpy as np
import pytest

from vmoe_prc.analysis.opened_run import open_run
from vmoe_prc.config import ConfigError
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.evaluator import EvaluationContext
from vmoe_prc.evaluation.mistakes import confusion_counts
from vmoe_prc.figures.mistakes import MOST_IMAGES, confusion_figure, mistakes_figure
from vmoe_prc.models import apply_model


@dataclasses.dataclass(frozen=True)
class SplitOfRun:
    """The split `test` of an opened run, as an evaluator reads it."""

    run: object
    spec: dict = dataclasses.field(default_factory=dict)
    value_range: tuple = (-1.0, 1.0)
    class_names: tuple = tuple("abcdefghij")

    def batches(self):
        return self.run.batches("test")


@pytest.fixture(scope="module")
def context(finished):
    run = open_run(finished[0])
    splits = {"test": SplitOfRun(run)}
    return run, EvaluationContext(run.config, run.model, run.mesh, splits, lambda *unused: None)


def numbers(figure):
    return sum(int(text.get_text()) for text in figure.axes[0].texts)


@pytest.mark.slow
def test_a_run_ends_with_its_mistakes(context):
    run, context = context
    with jax.set_mesh(run.mesh):
        drawn = EVALUATORS["mistakes"](context, split="test")(run.params)
        right, wrong = 0, []
        for batch in run.batches("test"):
            logits, _ = apply_model(run.model, run.params, batch["image"], batch["mask"])
            found = np.asarray(jax.nn.softmax(logits))[np.asarray(batch["mask"])]
            labels = np.asarray(batch["labels"]).argmax(-1)[np.asarray(batch["mask"])]
            missed = found.argmax(-1) != labels
            right += int((~missed).sum())
            wrong += zip(found[missed].max(-1), labels[missed], strict=True)
    confusion, worst = drawn["confusion"](), drawn["worst"]()
    assert f"{right} of {right + len(wrong)} images are right" in confusion.texts[-1].get_text()
    assert numbers(confusion) == right + len(wrong)
    shares = [axes.get_title().split()[1] for axes in worst.axes[:MOST_IMAGES]]
    expected = sorted(wrong, key=lambda pair: -pair[0])[:MOST_IMAGES]
    assert shares == [f"{share:.0%}" for share, _ in expected]
    assert worst.axes[0].get_title().endswith(f"is {'abcdefghij'[expected[0][1]]}")


def test_a_split_that_is_not_there(context):
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        EVALUATORS["mistakes"](context[1], split="tset")


def test_many_classes_are_bounded_to_the_confused_ones():
    # As many as ImageNet-21k has: a dense matrix would take 3.8 GB.
    labels = np.repeat([*range(1000), 700, 3], [*[5] * 1000, 4, 4])
    predicted = np.repeat([*range(1000), 3, 900], [*[5] * 1000, 4, 4])
    counts = confusion_counts(labels, predicted, 21_843)
    assert counts.nnz == 1002
    figure = confusion_figure(counts, [f"${i}_\\frac$" * 9 for i in range(21_843)])
    figure.canvas.draw()
    assert max(figure.get_size_inches()) < 13
    assert numbers(figure) == 24 * 5 + 8
    assert "5,000 of 5,008" in figure.texts[-1].get_text()


def test_no_mistakes_and_two_classes():
    no_classes, names = np.zeros(0, int), ["a", "b"]
    none = mistakes_figure(np.zeros((0, 8, 8, 3)), no_classes, no_classes, np.zeros(0), names)
    assert none.texts[-1].get_text() == "every image is right"
    counts = confusion_counts(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1]), 2)
    figure = confusion_figure(counts, names)
    figure.canvas.draw()
    assert numbers(figure) == 6
