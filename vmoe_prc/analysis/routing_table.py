"""The routing table: one row per choice of each token, in a Parquet file.

| column | type | meaning |
| --- | --- | --- |
| image | int32 | position in the split |
| label | int32 | class of the image; -1 for an image without labels |
| view | int8 | 0, or 0 and 1 for pairs of views |
| block | category | block with experts, such as `encoderblock_3` |
| token | int16 | position in the sequence |
| row, col | int16 | patch in the grid; -1 for the class token |
| match | int16 | in view 0: the token of view 1 at the same place, or -1; in view 1: -1 |
| rank | int8 | 1 for the first choice, up to K |
| expert | int16 | the expert chosen |
| gate | float32 | its probability |
| kept | bool | False where the expert had no room |
| entropy | float32 | entropy of the token's gates in nats |
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from vmoe_prc.analysis.choices import Choices, make_routing_step
from vmoe_prc.analysis.opened_run import OpenedRun
from vmoe_prc.config import ConfigError
from vmoe_prc.runtime.mesh import replicated
from vmoe_prc.steps.accuracy import main_class
from vmoe_prc.steps.views import match_views, merge_views
from vmoe_prc.workdir.atomic import atomic_write


def routing_table(
    run: OpenedRun,
    split: str,
    *,
    blocks: Sequence[str] | None = None,
    k: int | None = None,
) -> Iterator[pd.DataFrame]:
    """Routes a split batch by batch; only one batch is in memory.

    Args:
      run: The opened run.
      split: Name in `config.dataset`.
      blocks: Blocks to list; all blocks with experts by default.
      k: Choices to list for each token; all K by default.

    Yields:
      The rows of a batch, with the columns that this module describes.

    Raises:
      ConfigError: If there is no such split or block, the split is empty, or k exceeds the
        model's K.
    """
    split, blocks = run.choose_split(split), run.choose_blocks(blocks)
    k = _check_k(run, k)
    grid_columns = run.batch_spec(split)["image"].shape[-2] // run.config.model.patch_size[1]
    route = make_routing_step(run.model)

    def step(params, batch):
        images, _ = merge_views(batch["image"], batch["labels"])
        _, choices = route(params, images)
        pairs = match_views(run.model, batch) if run.has_two_views(split) else None
        return choices, pairs, main_class(batch["labels"]), batch["mask"]

    step = jax.jit(step, out_shardings=replicated(run.mesh))
    first = 0
    with jax.set_mesh(run.mesh):
        for batch in run.batches(split):
            choices, pairs, labels, mask = jax.device_get(step(run.params, batch))
            images = _Images(first, labels, mask, pairs, grid_columns, run.class_token)
            names = pd.CategoricalDtype(blocks)
            parts = [_frame(images, choices[block], k, block, names) for block in blocks]
            yield pd.concat(parts, ignore_index=True)
            first += len(mask)


def write_routing_table(
    run: OpenedRun, split: str, path: str | PathLike[str], **options: Any
) -> int:
    """Writes the routing table of a split as Parquet; a failure leaves no file.

    Args:
      run: The opened run.
      split: Name in `config.dataset`.
      path: The file to write; only process 0 writes it.
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
    """Reads a routing table or some of its columns; `stream_routing_table` needs less memory."""
    with epath.Path(path).open("rb") as file:
        return pd.read_parquet(file, columns=None if columns is None else list(columns))


def stream_routing_table(
    path: str | PathLike[str], columns: Sequence[str] | None = None
) -> Iterator[pd.DataFrame]:
    """Reads a routing table in parts, each with the images of one batch."""
    with epath.Path(path).open("rb") as file:
        table = pq.ParquetFile(file)
        for part in range(table.num_row_groups):
            yield table.read_row_group(part, columns=columns and list(columns)).to_pandas()


def _check_k(run: OpenedRun, k: int | None) -> int:
    trained = run.num_selected_experts
    if k is not None and not 1 <= k <= trained:
        expected = f"{run.name} selects {trained} experts per token: expected 1 to {trained}"
        raise ConfigError("--k", k, expected)
    return k or trained


@dataclasses.dataclass(frozen=True)
class _Images:
    """A batch of B images, whose rows all blocks share.

    Attributes:
      first: Position of the first image in the split.
      labels: (B,) classes; -1 without labels.
      mask: (B,) bool, which rows are images.
      pairs: (B, X, 2) matched tokens of the views, None with one view.
      grid_columns: Patches per row of an image.
      class_token: Whether token 0 is the class token.
    """

    first: int
    labels: np.ndarray
    mask: np.ndarray
    pairs: np.ndarray | None
    grid_columns: int
    class_token: bool

    @property
    def num_views(self) -> int:
        return 1 if self.pairs is None else 2

    def grid(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns row and column of each token; -1 for the class token."""
        patch = np.arange(tokens) - self.class_token
        row, col = np.where(patch < 0, -1, np.divmod(patch, self.grid_columns))
        return row, col

    def matches(self, tokens: int) -> np.ndarray:
        """Returns (B, views, T) tokens of view 1 that match tokens of view 0; else -1."""
        match = np.full((len(self.mask), self.num_views, tokens), -1)
        if self.pairs is not None:
            image, pair = np.nonzero(self.pairs[..., 0] >= 0)
            match[image, 0, self.pairs[image, pair, 0]] = self.pairs[image, pair, 1]
        return match


def _frame(
    images: _Images, choices: Choices, k: int, block: str, names: pd.CategoricalDtype
) -> pd.DataFrame:
    """Makes the rows of one block; `names` are the names of all blocks."""
    mask, tokens = images.mask, choices.experts.shape[1]
    shape = (len(mask), images.num_views, tokens, k)

    def rows(values, dtype, *axes):
        """Repeats values that have the given axes of (image, view, token, rank)."""
        values = np.asarray(values)
        index = tuple(slice(None) if axis in axes else None for axis in range(4))
        return np.broadcast_to(values[index], shape)[mask].reshape(-1).astype(dtype)

    def chosen(values, dtype):
        return values[..., :k].reshape(shape)[mask].reshape(-1).astype(dtype)

    row, col = images.grid(tokens)
    code = names.categories.get_loc(block)
    codes = np.full(int(mask.sum()) * math.prod(shape[1:]), code)
    return pd.DataFrame(
        {
            "image": rows(images.first + np.arange(len(mask)), np.int32, 0),
            "label": rows(images.labels, np.int32, 0),
            "view": rows(np.arange(images.num_views), np.int8, 1),
            "block": pd.Categorical.from_codes(codes, dtype=names),
            "token": rows(np.arange(tokens), np.int16, 2),
            "row": rows(row, np.int16, 2),
            "col": rows(col, np.int16, 2),
            "match": rows(images.matches(tokens), np.int16, 0, 1, 2),
            "rank": rows(1 + np.arange(k), np.int8, 3),
            "expert": chosen(choices.experts, np.int16),
            "gate": chosen(choices.gates, np.float32),
            "kept": chosen(choices.kept, bool),
            "entropy": rows(choices.entropy.reshape(shape[:3]), np.float32, 0, 1, 2),
        }
    )
