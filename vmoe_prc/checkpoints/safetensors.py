"""Parameters in one safetensors file, which programs in other frameworks read."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
from etils import epath

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.names import flattened, nested
from vmoe_prc.workdir.atomic import atomic_write

_MAX_HEADER_BYTES = 100_000_000
# The library's own reader of bytes does not read bfloat16.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def save(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays; the file is replaced as a whole or not at all.

    Args:
      path: The file; its directory is made if missing.
      params: Nested dicts of arrays, which get names such as `Encoder/encoder_norm/scale`.
      metadata: Texts by name, kept in the header.
    """
    flat = flattened(params)
    arrays = {name: jnp.asarray(x) for name, x in flat.items()}
    content = safetensors.flax.save(arrays, metadata=dict(metadata) if metadata else None)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save` wrote, or any other safetensors file, to the host.

    Args:
      path: The file, local or `gs://`.

    Returns:
      Nested dicts of NumPy arrays; `/` in the names separates the levels.

    Raises:
      CheckpointError: If it is missing, truncated or of another format.
    """
    try:
        arrays = dict(safetensors.deserialize(epath.Path(path).read_bytes()))
        flat = {name: _array(**described) for name, described in arrays.items()}
        if not flat:
            raise ValueError("it has no arrays")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: truncated, or of another format: {error}") from error
    return nested(flat, path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the metadata of a safetensors file; {} if it has none.

    Raises:
      CheckpointError: If it is missing, truncated or of another format.
    """
    try:
        with epath.Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            # The bound of the format.
            header = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
        return dict(header.get("__metadata__") or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated, or of another format: {error}") from None


def _array(dtype: str, shape: Sequence[int], data: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(data, jnp.dtype(_DTYPES[dtype])).reshape(shape)
