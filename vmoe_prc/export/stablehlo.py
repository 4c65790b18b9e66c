"""Export to StableHLO by `jax.export`: one program for CPU, CUDA and TPU, and for any batch."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export

from vmoe_prc.checkpoints.request import ExportRequest
from vmoe_prc.config.registry import EXPORTS
from vmoe_prc.predict.model import TrainedModel, open_model
from vmoe_prc.workdir.atomic import atomic_write

PLATFORMS = ("cpu", "cuda", "tpu")


@EXPORTS.register("stablehlo")
def export_stablehlo(request: ExportRequest) -> list[str]:
    """Writes TARGET, which `jax.export.deserialize(...).call(pixels)` runs; returns its path."""
    content = export_program(open_model(request.source, request.config)).serialize()
    with atomic_write(request.target) as temporary:
        temporary.write_bytes(bytes(content))
    return [os.fspath(request.target)]


def export_program(
    model: TrainedModel, platforms: Sequence[str] = PLATFORMS, batch: str = "n"
) -> export.Exported:
    """Lowers `model.forward`, with the parameters inside, for any number of images."""
    (images,) = export.symbolic_shape(batch)
    pixels = jax.ShapeDtypeStruct((images, *model.image_size, 3), jnp.float32)
    return export.export(jax.jit(model.forward), platforms=platforms)(pixels)
