"""All evaluations of a run: its splits, and few-shot classification."""

from collections.abc import Iterator

import jax
import ml_collections

from vmoe_prc import data
from vmoe_prc.config import fewshot_sections
from vmoe_prc.data.feed import device_batches
from vmoe_prc.evaluate import evaluate
from vmoe_prc.fewshot import fewshot_accuracies, represent
from vmoe_prc.mesh import batch_sharding
from vmoe_prc.program import Program
from vmoe_prc.train_state import TrainState
from vmoe_prc.train_step import Batch


def evaluate_splits(program: Program, state: TrainState) -> dict[str, float]:
    """Evaluates every split but `train`; metrics are named `{split}/{metric}`."""
    results = {}
    for split in program.eval_splits:
        batches = eval_batches(program, program.config.dataset[split])
        metrics = evaluate(program.eval_step, state.eval_params, batches)
        results |= {f"{split}/{name}": value for name, value in metrics.items()}
    return results


def evaluate_fewshot(program: Program, state: TrainState) -> dict[str, float]:
    """Few-shot accuracies of every data set listed, named `fewshot/{name}/{shots}shot`."""
    options = program.config.fewshot
    results = {}
    for name, sections in fewshot_sections(options).items() if options else ():
        examples = {
            split: represent(
                program.representation_step, state.eval_params, eval_batches(program, section)
            )
            for split, section in sections.items()
        }
        accuracies = fewshot_accuracies(examples, options.shots, options.l2_regs)
        results |= {f"fewshot/{name}/{key}": value for key, value in accuracies.items()}
    return results


def eval_batches(program: Program, dataset: ml_collections.ConfigDict) -> Iterator[Batch]:
    """Reads every image of a section of the configuration's data once, onto the devices."""
    return device_batches(
        data.eval_batches(
            dataset,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        batch_sharding(program.mesh),
        dataset.prefetch_device,
    )
