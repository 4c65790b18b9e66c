"""Names of metrics, as records that are written and read in one place.

    test/accuracy                       a metric of a split or of an evaluator: its group
    test/encoderblock_3/load/0          the load of expert 0 of a block
    test/kappa_low                      a bound of an interval, here over all blocks
    fewshot/cifar10/5shot               accuracy of a few-shot evaluation
    train/total_loss, speed/…           a training step, and how fast steps are

These are the names in `metrics.jsonl`, in TensorBoard and of `save_checkpoint.best_metric`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

# Groups of metrics that no evaluator of `config.evaluators` has.
TRAIN, SPEED, FEWSHOT = "train", "speed", "fewshot"
_NUMBER = "0|[1-9][0-9]{0,8}"
_FEWSHOT_NAME = re.compile(
    rf"(?P<group>{FEWSHOT})/(?P<dataset>.+)/(?P<shots>{_NUMBER})(?P<measure>shot(_l2)?)", re.DOTALL
)
_NAME = re.compile(
    r"((?P<group>[^/]*)/((?P<block>[^/]*[0-9])/)?)?"
    r"(?P<measure>.*?)(_(?P<bound>low|high))?"
    rf"(?(block)(/(?P<expert>{_NUMBER}))?)",
    re.DOTALL,
)
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class MetricName:
    """The parts of a metric's name; `str` joins them, `parse_name` reads them.

    Attributes:
      measure: Such as 'accuracy', 'top1' or 'load'; of a few-shot evaluation 'shot', the
        accuracy, or 'shot_l2', the strength of its regularisation.
      group: Split, label of an evaluator, `TRAIN`, `SPEED` or `FEWSHOT`. A name without a group
        is one in its group: `under` puts it there.
      block: Block with experts, such as 'encoderblock_3'; its name ends in its number. None for
        all blocks, and for what is not of routing.
      expert: Index of an expert, None for all of a block.
      bound: 'low' or 'high' for a bound of the 95% interval of the measure, None for its value.
      dataset: Data set of a few-shot evaluation.
      shots: Its number of training images per class.
    """

    measure: str
    group: str | None = None
    block: str | None = None
    expert: int | None = None
    bound: str | None = None
    dataset: str | None = None
    shots: int | None = None

    def __str__(self) -> str:
        shots = "" if self.shots is None else self.shots
        bound = "" if self.bound is None else f"_{self.bound}"
        measure = f"{shots}{self.measure}{bound}"
        parts = (self.group, self.block, self.dataset, measure, self.expert)
        return "/".join(str(part) for part in parts if part is not None)


@functools.lru_cache(maxsize=1 << 16)  # The names of a run recur at each of its steps.
def parse_name(name: str) -> MetricName:
    """Reads a full name, which may be any text: `str` of the result is the name."""
    found = _FEWSHOT_NAME.fullmatch(name) or _NAME.fullmatch(name)
    assert found is not None, name  # A measure is any text.
    fields: dict[str, Any] = found.groupdict()
    for number in ("expert", "shots"):
        if fields.get(number):
            fields[number] = int(fields[number])
    return MetricName(**fields)


def parse_names(values: Mapping[str, Value]) -> dict[MetricName, Value]:
    """Reads the names of metrics."""
    return {parse_name(name): value for name, value in values.items()}


def block_number(block: str) -> int:
    """Returns the number that the name of a block ends in: 3 of 'encoderblock_3'.

    Raises:
      ValueError: If it does not end in a number.
    """
    found = re.search(r"[0-9]+$", block)
    if found is None:
        raise ValueError(f"block {block!r}: expected a name that ends in its number")
    return int(found[0])


def block_order(block: str) -> tuple[int, str]:
    """Returns a key that sorts blocks by their numbers, and others first, by their names."""
    found = re.search(r"[0-9]+$", block)
    return (int(found[0]) if found else -1), block


def under(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Puts names into a group, or names of a group under a block or data set."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
