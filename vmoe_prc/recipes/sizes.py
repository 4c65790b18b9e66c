"""Steps, batch and intervals of a training on few images, from their number."""

import dataclasses
from typing import Any

# Steps per epoch for few images; the batch is at least `LEAST_VIEWS` views.
_STEPS_PER_EPOCH = 4
LEAST_VIEWS = 16
# Steps between two evaluations of a long training, and evaluations of a short one.
_MOST_BETWEEN, _EVALUATIONS = 1_000, 4
_REPORTS = 24
_BUFFER = 50_000


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a training.

    Attributes:
      images: Training images that they are for.
      views_per_step: Views of images that the model sees in a step, a power of 2.
      steps: Length of the training.
      test_views: Views of test images that are evaluated at once, a power of 2.
    """

    images: int
    views_per_step: int
    steps: int
    test_views: int

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up of the learning rate, a tenth."""
        return max(self.steps // 10, 1)

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations, and between two checkpoints."""
        return min(max(self.steps // _EVALUATIONS, 1), _MOST_BETWEEN)

    @property
    def report_every(self) -> int:
        """Steps between two reports of progress."""
        return max(min(self.steps // _REPORTS, self.evaluate_every), 1)

    @property
    def shuffle_buffer(self) -> int:
        """`shuffle_buffer` of `config.dataset.train`."""
        return min(self.images, _BUFFER)

    @property
    def note(self) -> str:
        """Says what follows from the number of images, as one line."""
        shown = self.steps * self.views_per_step / self.images
        return (
            f"sizes for {self.images:,} training images: {self.views_per_step:,} views a step, "
            f"{self.steps:,} steps ({shown:,.0f} views of each image), evaluation and checkpoint "
            f"every {self.evaluate_every:,} steps"
        )


def derive_sizes(
    images: int,
    test_images: int,
    *,
    views_per_image: int,
    most_views: int,
    least_steps: int,
    most_steps: int,
    steps: int = 0,
) -> Sizes:
    """Derives the sizes of a training from the number of its images.

    A step has at most a quarter of the images as views, so that an epoch has four steps or more.
    Steps are such that each image is seen `views_per_image` times, in whole hundreds, between
    `least_steps` (a model needs some however few images there are) and `most_steps` (of many
    images each is seen less often), as the length of a fine-tuning grows with the data set in
    BiT's rule (arXiv 1912.11370, section 3.3).

    Args:
      images: Training images.
      test_images: Test images.
      views_per_image: How often an image is seen.
      most_views: Most views of a step, a power of 2.
      least_steps: Fewest steps.
      most_steps: Most steps.
      steps: Number of steps; 0 to derive it.
    """
    views = min(max(_power_of_2(images // _STEPS_PER_EPOCH), LEAST_VIEWS), most_views)
    derived = round(images * views_per_image / views, -2)
    steps = steps or int(min(max(derived, least_steps), most_steps))
    test_views = min(max(_power_of_2(2 * test_images - 1), LEAST_VIEWS), most_views)
    return Sizes(images, views, steps, test_views)


def _power_of_2(number: int) -> int:
    """Returns the largest power of 2 that is not above a number, 1 of numbers below 1."""
    return 1 << (max(number, 1).bit_length() - 1)


def with_sizes(config: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Returns a recipe with other sizes, which ends with figures of the mistakes on `test`.

    Args:
      config: The recipe. Splits whose `process` makes two views have half as many images per
        batch as the others.
      sizes: The sizes.
    """
    dataset = {}
    for name, split in config["dataset"].items():
        views = sizes.views_per_step if name == "train" else sizes.test_views
        two_views = "two_views" in split["process"]
        dataset[name] = {**split, "batch_size": views // 2 if two_views else views}
    dataset["train"]["shuffle_buffer"] = sizes.shuffle_buffer
    schedule = {**config["optimizer"]["learning_rate"], "warmup_steps": sizes.warmup_steps}
    return {
        **config,
        "note": sizes.note,
        "train_steps": sizes.steps,
        "dataset": dataset,
        "optimizer": {**config["optimizer"], "learning_rate": schedule},
        "evaluate": {**config["evaluate"], "every_steps": sizes.evaluate_every},
        # After the last step only.
        "evaluators": {"mistakes": {"name": "mistakes", "every_steps": sizes.steps}},
        "save_checkpoint": {"every_steps": sizes.evaluate_every},
        "report_progress": {"every_steps": sizes.report_every},
    }
