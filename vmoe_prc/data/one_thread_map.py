"""`Dataset.map` in parallel over examples, with each example on one thread from begin to end.

`Dataset.map` also runs the ops of one example in parallel. Ours take microseconds, and handing
them from thread to thread costs more than that.
"""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

# TensorFlow's executor for one thread has no branches and loops.
CONTROL_FLOW = {"Case", "If", "StatelessCase", "StatelessIf", "StatelessWhile", "While"}


def one_thread_map(examples: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    """Maps a dataset, in order and as many examples at once as tf.data finds useful.

    Args:
      examples: The dataset.
      function: Takes an element, and returns nested tensors. With branches or loops of
        TensorFlow in it, its ops run in parallel nevertheless.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(*examples.element_spec)
    spec = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), traced.structured_outputs
    )
    flat = tf.nest.flatten(spec)
    mapped = tf.raw_ops.ParallelMapDatasetV2(
        input_dataset=tf.data.experimental.to_variant(examples),
        other_arguments=traced.captured_inputs,
        num_parallel_calls=tf.constant(tf.data.AUTOTUNE, tf.int64),
        f=traced,
        output_types=[x.dtype for x in flat],
        output_shapes=[x.shape for x in flat],
        # What `Dataset.map` does not let one choose.
        use_inter_op_parallelism=not CONTROL_FLOW.isdisjoint(_ops(traced)),
        deterministic="true",
        preserve_cardinality=True,
    )
    return tf.data.experimental.from_variant(mapped, spec)


def _ops(function: tf.types.experimental.ConcreteFunction) -> Iterator[str]:
    """Names the ops of a function, those of functions that it calls included."""
    graph = function.graph.as_graph_def()
    yield from (node.op for node in graph.node)
    for called in graph.library.function:
        yield from (node.op for node in called.node_def)
