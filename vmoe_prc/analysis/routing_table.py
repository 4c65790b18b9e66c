"""The routing table: a row for each choice of each token, in a Parquet file.

| column | type | meaning |
| --- | --- | --- |
| image | int32 | position in the split |
| label | int32 | class of the image |
| view | int8 | 0, or 0 and 1 for pairs of views |
| block | category | block with experts, such as `encoderblock_3` |
| token | int16 | position in the sequence |
| row, col | int16 | patch in the grid; -1 for the class token |
| match | int16 | of view 0: token of view 1 at the same place; -1 without one, and in view 1 |
| rank | int8 | 1 for the first choice, up to K |
| expert | int16 | the expert chosen |
| gate | float32 | its probability |
| kept | bool | False where the expert had no room |
| entropy | float32 | entropy of the token's gates in nats |
"""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.analysis.routing import Choices, make_routing_step
from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.views import match_views, merge_views
from vmoe_prc.workdir.atomic import atomic_write


def routing_table(
    run: OpenedRun,
    split: str,
    *,
    blocks: Sequence[str] | None = None,
    k: int | None = None,
) -> Iterator[pd.DataFrame]:
    """Routes a split, batch after batch; only one batch is in memory.

    Args:
      run: The opened run.
      split: Name in `config.dataset`.
      blocks: Blocks to list; all that have experts by default.
      k: Choices to list for each token; all K by default.

    Yields:
      The rows of a batch, with the columns that this module describes.

    Raises:
      ConfigError: If there is no such split or block, the split is empty, or k exceeds
        the K that the model was made with.
    """
    split, blocks = run.choose_split(split), run.choose_blocks(blocks)
    k = _check_k(run, k)
    grid_columns = run.batch_spec(split)["image"].shape[-2] // run.config.model.patch_size[1]
    route = make_routing_step(run.model)

    def step(params, batch):
        images, _ = merge_views(batch["image"], batch["labels"])
        _, choices = route(params, images)
        pairs = match_views(run.model, batch) if run.has_two_views(split) else None
        return choices, pairs, batch["labels"].argmax(-1), batch["mask"]

    step = jax.jit(step, out_shardings=replicated(run.mesh))
    first = 0
    with jax.set_mesh(run.mesh):
        for batch in run.batches(split):
            choices, pairs, labels, mask = jax.device_get(step(run.params, batch))
            parts = [
                _frame(
                    run, blocks, block, choices[block], pairs, labels, mask, first, k, grid_columns
                )
                for block in blocks
            ]
            yield pd.concat(parts, ignore_index=True)
            first += len(mask)


def write_routing_table(
    run: OpenedRun, split: str, path: str | PathLike[str], **options: Any
) -> int:
    """Writes the routing table of a split as Parquet, whole or not at all.

    Args:
      run: The opened run.
      split: Name in `config.dataset`.
      path: The file to write; of several processes the first one writes it.
      **options: See `routing_table`.

    Returns:
      The number of rows.
    """
    frames = routing_table(run, split, **options)
    if jax.process_index() != 0:
        return sum(map(len, frames))
    count = 0
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        first = pa.Table.from_pandas(next(frames), preserve_index=False)
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            count += first.num_rows
            for frame in frames:
                writer.write_table(pa.Table.from_pandas(frame, first.schema, preserve_index=False))
                count += len(frame)
    return count


def read_routing_table(
    path: str | PathLike[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Reads a routing table, or some of its columns; `stream_routing_table` needs less memory."""
    with epath.Path(path).open("rb") as file:
        return pd.read_parquet(file, columns=None if columns is None else list(columns))


def stream_routing_table(
    path: str | PathLike[str], columns: Sequence[str] | None = None
) -> Iterator[pd.DataFrame]:
    """Reads a routing table part by part, each with the images of a batch."""
    with epath.Path(path).open("rb") as file:
        table = pq.ParquetFile(file)
        for part in range(table.num_row_groups):
            yield table.read_row_group(part, columns=columns and list(columns)).to_pandas()


def _check_k(run: OpenedRun, k: int | None) -> int:
    trained = run.num_selected_experts
    if k is not None and not 1 <= k <= trained:
        raise ConfigError(
            "--k", k, f"{run.name} chooses {trained} experts a token: expected 1 to it"
        )
    return k or trained


def _frame(
    run: OpenedRun,
    blocks: Sequence[str],
    block: str,
    choices: Choices,
    pairs: np.ndarray | None,
    labels: np.ndarray,
    mask: np.ndarray,
    first: int,
    k: int,
    grid_columns: int,
) -> pd.DataFrame:
    """Rows of one block and batch of B images, `first` being the position of the first."""
    num_images, views = len(mask), 1 if pairs is None else 2
    tokens = choices.experts.shape[1]
    shape = (num_images, views, tokens, k)
    match = np.full(shape[:3], -1)
    if pairs is not None:
        image, pair = np.nonzero(pairs[..., 0] >= 0)
        match[image, 0, pairs[image, pair, 0]] = pairs[image, pair, 1]
    patch = np.arange(tokens) - run.class_token
    row, col = np.where(patch < 0, -1, np.divmod(patch, grid_columns))

    def rows(values, dtype, *axes):
        """Spreads values that have the given axes of (image, view, token, rank)."""
        values = np.asarray(values)
        index = tuple(slice(None) if axis in axes else None for axis in range(4))
        return np.broadcast_to(values[index], shape)[mask].reshape(-1).astype(dtype)

    def chosen(values, dtype):
        return values[..., :k].reshape(shape)[mask].reshape(-1).astype(dtype)

    codes = np.full(int(mask.sum()) * views * tokens * k, blocks.index(block))
    return pd.DataFrame(
        {
            "image": rows(first + np.arange(num_images), np.int32, 0),
            "label": rows(labels, np.int32, 0),
            "view": rows(np.arange(views), np.int8, 1),
            "block": pd.Categorical.from_codes(codes, list(blocks)),
            "token": rows(np.arange(tokens), np.int16, 2),
            "row": rows(row, np.int16, 2),
            "col": rows(col, np.int16, 2),
            "match": rows(match, np.int16, 0, 1, 2),
            "rank": rows(1 + np.arange(k), np.int8, 3),
            "expert": chosen(choices.experts, np.int16),
            "gate": chosen(choices.gates, np.float32),
            "kept": chosen(choices.kept, bool),
            "entropy": rows(choices.entropy.reshape(shape[:3]), np.float32, 0, 1, 2),
        }
    )
