"""The fields of a configuration: types, defaults, ranges, and one sentence each.

`docs/CONFIG.md` is generated from this module and from the options that routers, losses,
schedules and optimisers register. The names are V-MoE's where V-MoE has the field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vmoe_prc.config.options import option
from vmoe_prc.config.registry import (
    BALANCE_LOSSES,
    CLASSIFICATION_LOSSES,
    CONSISTENCY_LOSSES,
    EVALUATORS,
    LOGGERS,
    MODELS,
    OPTIMIZERS,
)

# JAX counts steps in 32 bits.
MAX_STEPS = 2**31 - 1
# Keys made from larger seeds repeat the keys of smaller seeds.
MAX_SEED = 2**32 - 1

section = dataclasses.dataclass(frozen=True, kw_only=True)


@section
class Dataset:
    """A split of a data set, how it is preprocessed and read."""

    name: str = option(help="Name of the data set: one of TFDS, or one registered here.")
    split: str = option(help="Part of the data set in the words of TFDS, such as `train[:95%]`.")
    process: str = option(help="Preprocessing ops, separated by `|`.")
    batch_size: int = option(
        help="Images per step, over all devices; each gives two views where `process` has "
        "`two_views`.",
        minimum=1,
        maximum=2**31 - 1,
    )
    shuffle_buffer: int = option(
        50_000,
        "Any number but 0 shuffles the whole training split in each epoch (name and default are "
        "V-MoE's); 0 keeps the order of the files.",
        minimum=0,
    )
    shuffle_block: int = option(
        1,
        "Adjacent examples that stay together in the shuffle; more than 1 needs fewer requests "
        "on object stores, and mixes less.",
        minimum=1,
    )
    cache: str | None = option(
        None,
        "`loaded` keeps the stored examples in memory, None reads them again in each epoch.",
        choices=(None, "loaded"),
    )
    max_bad_examples: int = option(
        100, "Unreadable examples after which a run stops; fewer are replaced.", minimum=0
    )
    data_dir: str | None = option(
        None, "Directory of prepared data sets; None for TFDS's, `~/tensorflow_datasets`."
    )
    manual_dir: str | None = option(None, "Directory of the files that a data set is made from.")
    workers: int = option(
        0,
        "Processes that preprocess training batches; 0 uses threads, which share the lock of one "
        "interpreter. At most two for each core are started. Batches are the same.",
        minimum=0,
        maximum=1_000,
    )
    prefetch: Literal["autotune"] | int = option(
        "autotune",
        "Batches prepared ahead on the host; `autotune` lets TensorFlow choose.",
        minimum=1,
        maximum=1_000,
    )
    prefetch_device: int = option(2, "Batches sent ahead to the devices.", minimum=1, maximum=1_000)
    unlabelled: str = option(
        "left_out",
        "In evaluation, whether images without a label are `left_out` of accuracy and loss, as in "
        "the definition of ImageNet-ReaL, or count as `wrong`, as in V-MoE's program.",
        choices=("left_out", "wrong"),
    )


@section
class Clusters:
    """Experts from clusters of a dense model's activations, see `train.cluster_upcycling`."""

    images: int = option(512, "Images of training whose tokens are clustered.", minimum=1)
    energy: float = option(
        0.99,
        "Share of the sum of squares of a layer's outputs that an expert keeps.",
        above=0.0,
        maximum=1.0,
    )


@section
class Initialization:
    """Starts from the parameters of another model."""

    prefix: str | None = option(
        None, "Checkpoint or work directory to start from; None starts from random values."
    )
    rules: tuple[tuple[Any, ...], ...] = option(
        (("^(.*)$", r"\1"),),
        "Rules (regex, new name or None, transformations...); the first that matches counts.",
    )
    raise_if_source_unmatched: bool = option(
        True, "Whether parameters of the checkpoint that no rule matches are an error."
    )
    raise_if_target_unmatched: bool = option(
        True, "Whether parameters of the model that get no value are an error."
    )
    clusters: Clusters | None = option(
        None, "Makes experts that are copies differ by clusters of tokens; None for copies."
    )
    optimizer_state: bool = option(
        False,
        "Whether the step and the state of the optimiser are loaded, too, to continue a run of "
        "V-MoE's or PRC's program; its optimiser must be the same.",
    )


@section
class AuxiliaryLoss:
    """Weights of the losses that balance the use of the experts."""

    @staticmethod
    def more() -> list[type]:
        """Returns the options of every registered balance loss."""
        return [BALANCE_LOSSES.options(name) for name in BALANCE_LOSSES]


@section
class Mixup:
    """Mixes images and their labels (arXiv 1710.09412)."""

    concentration: float = option(
        help="Parameter of the Dirichlet distribution of the weights.", above=0
    )
    size: int = option(2, "Images in each mixture.", minimum=2, maximum=1_000)
    granularity: str = option(
        "device",
        "What shares its weights: the whole `batch`, the images of a `device`, or each `example` "
        "has its own.",
        choices="vmoe_prc.steps.mixup:GRANULARITIES",
    )


@section
class Evaluate:
    """The evaluation of all splits but `train`."""

    every_steps: int = option(
        1000,
        "Steps between evaluations; the last step is evaluated, too.",
        minimum=1,
        maximum=MAX_STEPS,
    )
    model_overrides: Mapping[str, Any] = option(
        dict, "Fields of `model` that differ in evaluation, such as the capacity.", changes=MODELS
    )


@section
class SaveCheckpoint:
    """The checkpoints of a run."""

    every_steps: int = option(
        1000,
        "Steps between checkpoints; the last step is saved, too.",
        minimum=1,
        maximum=MAX_STEPS,
    )
    keep_last: int = option(
        2, "Newest checkpoints kept; the older ones serve if the last is damaged.", minimum=1
    )
    keep_steps_multiple_of: int | None = option(
        None,
        "The checkpoints of multiples of this many steps are kept, too; None for none.",
        minimum=1,
        maximum=MAX_STEPS,
    )
    keep_best: int = option(0, "Best checkpoints kept in addition, by `best_metric`.", minimum=0)
    best_metric: str | None = option(
        None,
        "Metric `{split}/{metric}` that `keep_best` goes by: the lowest loss, the highest "
        "of any other.",
    )


@section
class Fewshot:
    """Few-shot classification: ridge regressions on the frozen representations."""

    datasets: Mapping[str, tuple[str, str, str] | tuple[str, str, str, str]] = option(
        help="Data sets: (TFDS name, training, validation, test split), by names of yours; without "
        "a validation split it is the last tenth of the training split.",
        form="names of (TFDS name, training split, validation split, test split)",
    )
    process: str = option(help="Preprocessing ops; labels stay numbers in `label`.")
    batch_size: int = option(help="Images evaluated at once.", minimum=1, maximum=2**31 - 1)
    shots: tuple[int, ...] = option(
        (1, 5, 10, 25), "Training images per class.", minimum=1, form="tuple of ints"
    )
    l2_regs: tuple[float, ...] = option(
        tuple(2.0**i for i in range(-10, 20)),
        "Strengths of the regression's penalty, chosen among on the validation split.",
        above=0,
        form="tuple of floats",
    )
    data_dir: str | None = option(None, "Directory of prepared data sets; None for TFDS's.")
    every_steps: int = option(
        25_000,
        "Steps between evaluations; the last step is evaluated, too.",
        minimum=1,
        maximum=MAX_STEPS,
    )


@section
class ReportProgress:
    """The training metrics."""

    every_steps: int = option(
        100, "Steps between lines of training metrics.", minimum=1, maximum=MAX_STEPS
    )


@section
class Adversarial:
    """Training on attacked images, as in V-MoE's study (arXiv 2210.10253).

    Before each step the images take `num_updates` steps of max_epsilon / num_updates along the
    sign of the gradient of the loss, without being cut to the range of pixel values.
    """

    max_epsilon: float = option(
        help="Largest change of a pixel, in units of the values that the model sees.", minimum=0.0
    )
    num_updates: int = option(1, "Steps of the attack.", minimum=1, maximum=1_000)
    attack_auxiliary_loss: bool = option(
        False, "Whether the balance losses are attacked, too, not only the classification."
    )


@section
class SummarizeArrays:
    """Numbers of single arrays of the training state among the metrics of training."""

    rules: tuple[Any, ...] = option(
        help="Regexes of names such as `params/head/bias`; or (regex, operation, …), each "
        "operation a name or (name, axes): norm, mean, std, sum, min or max.",
        form="regexes, or (regex, operation, ...)",
    )
    max_summary_values: int = option(
        1, "Numbers that one rule may give for one array; more are an error.", minimum=1
    )


@section
class Profile:
    """A trace of a few steps for TensorBoard's profiler."""

    first_profile: int = option(10, "First step traced.", minimum=2, maximum=MAX_STEPS)
    num_profile_steps: int = option(5, "Steps traced.", minimum=1, maximum=MAX_STEPS)


@section
class Config:
    """The configuration of a run."""

    description: str = option("", "Title of the run, for its reader.")
    note: str = option(
        "",
        "Line at the start of the log, such as which sizes a recipe has derived from the number "
        "of images.",
    )
    imports: tuple[str, ...] = option(
        (),
        "Modules, or paths of Python files, imported before the configuration is checked; they "
        "register routers, losses, ops and data sets.",
    )
    seed: int = option(
        0,
        "Seed of initial values, data order, augmentations and noise.",
        minimum=0,
        maximum=MAX_SEED,
    )
    train_steps: int | None = option(
        None,
        "Length of the training in steps; excludes `train_epochs`.",
        minimum=1,
        maximum=MAX_STEPS,
    )
    train_epochs: float | None = option(
        None,
        "Length of the training in passes over the views: with two views per image, one "
        "epoch passes over half of the images.",
        above=0,
    )
    dataset: Mapping[str, Dataset] = option(
        help="Splits by name: `train`, and any others, which are evaluated."
    )
    model: Mapping[str, Any] = option(
        lambda: {"name": "VisionTransformerMoe"}, "The model.", choices=MODELS
    )
    initialization: Initialization = option(Initialization, "Start from another model.")
    loss: Mapping[str, Any] = option(help="The classification loss.", choices=CLASSIFICATION_LOSSES)
    auxiliary_loss: AuxiliaryLoss = option(AuxiliaryLoss, "Balance losses.")
    consistency: Mapping[str, Any] | None = option(
        None,
        "The loss that makes routing consistent over two views of an image; None for none.",
        choices=CONSISTENCY_LOSSES,
    )
    optimizer: Mapping[str, Any] = option(help="The optimiser.", choices=OPTIMIZERS)
    ema_decay: float | None = option(
        None,
        "Decay of a moving average of the parameters, which is evaluated; None for none.",
        minimum=0.0,
        maximum=1.0,
    )
    microsteps: int = option(
        1, "Parts that a batch is split into to save memory; gradients are averaged.", minimum=1
    )
    gradient_dtype: str = option(
        "float32",
        "Dtype in which layers in bfloat16 compute the gradients of their kernels and biases, and "
        "in which these are summed over devices; float32 layers compute and sum in float32.",
        choices=("float32", "bfloat16"),
    )
    max_skipped_steps: int = option(
        10,
        "Steps in a row with a loss or gradients that are not finite, after which a run stops; "
        "fewer are skipped.",
        minimum=1,
    )
    mixup: Mixup | None = option(None, "Mixup; None for none.")
    adversarial: Adversarial | None = option(None, "Adversarial training; None for none.")
    num_expert_partitions: Literal["auto"] | int = option(
        1,
        "Devices that the experts of a block are split over; others hold copies. 'auto': as many "
        "as divide the experts and the devices of a host or of a slice of TPUs.",
        minimum=1,
    )
    shard_dense_params: bool = option(
        False, "Whether the kernels outside the experts are split over all devices."
    )
    shard_optimizer: bool = option(
        False,
        "Whether the optimiser's state and the update are split over all devices, though each "
        "device has whole parameters.",
    )
    params_axis_resources: tuple[tuple[str, tuple[str | None, ...]], ...] = option(
        (("Moe/Mlp/.*", ("expert",)),),
        "Pairs (regex, mesh axis or None of each leading dimension) that shard parameters.",
        form="pairs (regex, (axis or None, ...))",
    )
    evaluate: Evaluate = option(Evaluate, "Evaluation.")
    save_checkpoint: SaveCheckpoint = option(SaveCheckpoint, "Checkpoints.")
    fewshot: Fewshot | None = option(None, "Few-shot evaluation; None for none.")
    evaluators: Mapping[str, Mapping[str, Any]] = option(
        dict,
        "Further evaluators, by a label that prefixes their results.",
        choices=EVALUATORS,
    )
    loggers: Mapping[str, Mapping[str, Any]] = option(
        dict,
        "Where metrics go in addition to TensorBoard and `metrics.jsonl`, by a label.",
        choices=LOGGERS,
    )
    report_progress: ReportProgress = option(ReportProgress, "Training metrics.")
    summarize_arrays: SummarizeArrays | None = option(
        None, "Numbers of single arrays; None for none."
    )
    profile: Profile | None = option(None, "Profiling; None for none.")
