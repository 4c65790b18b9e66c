"""The evaluators of a run, each with its interval."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import ml_collections

from vmoe_prc.config.metric_names import under
from vmoe_prc.config.registry import EVALUATORS
from vmoe_prc.evaluation.evaluator import EvaluationContext, Evaluator, Result

FIELD = "config.evaluators"


@dataclasses.dataclass(frozen=True)
class ScheduledEvaluator:
    """An evaluator and when it runs.

    Attributes:
      name: Its label; unique in a run.
      every_steps: It runs after each multiple of this many steps, and after the last step.
      run: The evaluator. Its results have their full names.
    """

    name: str
    every_steps: int
    run: Evaluator


def create_evaluators(context: EvaluationContext) -> list[ScheduledEvaluator]:
    """Creates the evaluators that the configuration asks for.

    `config.evaluate` asks for the splits and for the picture of their routing,
    `config.fewshot` for few-shot classification, and `config.evaluators` for any others.

    Raises:
      ConfigError: If an evaluator is unknown, or cannot be used as configured.
    """
    config = context.config
    every_steps = config.evaluate.every_steps
    evaluators = [
        ScheduledEvaluator("splits", every_steps, EVALUATORS["splits"](context)),
        ScheduledEvaluator("routing_picture", every_steps, EVALUATORS["routing_picture"](context)),
    ]
    if config.fewshot:
        run = EVALUATORS["fewshot"](context, **_options(config.fewshot))
        evaluators.append(ScheduledEvaluator("fewshot", config.fewshot.every_steps, run))
    return evaluators + [
        ScheduledEvaluator(label, section.every_steps, _create(label, section, context))
        for label, section in config.evaluators.items()
    ]


def _create(
    label: str, section: ml_collections.ConfigDict, context: EvaluationContext
) -> Evaluator:
    """Creates an evaluator of `config.evaluators`, whose results are prefixed by its label."""
    evaluate = EVALUATORS[section.name](context, **_options(section))
    return lambda params: under(label, evaluate(params))


def _options(section: ml_collections.ConfigDict) -> dict[str, Any]:
    return {k: v for k, v in section.to_dict().items() if k not in ("name", "every_steps")}


def evaluate(evaluators: Iterable[ScheduledEvaluator], params: Any) -> dict[str, Result]:
    """Runs evaluators one after the other; returns the results of all of them.

    Args:
      evaluators: The evaluators.
      params: Parameters of the model.
    """
    return {
        name: value for evaluator in evaluators for name, value in evaluator.run(params).items()
    }
