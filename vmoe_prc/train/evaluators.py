"""All evaluations of a run: its splits, and few-shot classification."""

from vmoe_prc.config import fewshot_sections
from vmoe_prc.data.feed import eval_batches
from vmoe_prc.evaluation.fewshot import fewshot_accuracies, represent
from vmoe_prc.evaluation.splits import evaluate
from vmoe_prc.steps.state import TrainState
from vmoe_prc.train.program import Program


def evaluate_splits(program: Program, state: TrainState) -> dict[str, float]:
    """Evaluates every split but `train`; metrics are named `{split}/{metric}`."""
    results = {}
    for split in program.eval_splits:
        batches = eval_batches(program.config.dataset[split], program.mesh)
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
                program.representation_step,
                state.eval_params,
                eval_batches(section, program.mesh),
            )
            for split, section in sections.items()
        }
        accuracies = fewshot_accuracies(examples, options.shots, options.l2_regs)
        results |= {f"fewshot/{name}/{key}": value for key, value in accuracies.items()}
    return results
