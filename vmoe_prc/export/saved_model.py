"""Export to a TensorFlow SavedModel that reads encoded images, for TensorFlow Serving.

TensorFlow's op `XlaCallModule` calls the program that `stablehlo` writes, as JAX's own `jax2tf`
does; decoding and preprocessing are TensorFlow's ops.
"""

import os
import re
from typing import Any

import jax
from jax import export
from jax.extend.mlir.dialects import stablehlo

from vmoe_prc.checkpoints.request import ExportRequest
from vmoe_prc.config import ConfigError
from vmoe_prc.config.registry import EXPORTS
from vmoe_prc.export.stablehlo import export_program
from vmoe_prc.predict.model import TrainedModel, open_model
from vmoe_prc.workdir.paths import user_path

# A version of StableHLO that TensorFlow 2.21 reads.
STABLEHLO_VERSION = "1.8.0"
PLATFORMS = ("cpu", "cuda")
_COMPOSITE = re.compile(
    r'stablehlo\.composite "[^"]+" (?P<args>[^{:]*) '
    r"\{[^\n]*?decomposition = (?P<function>@[^,}\s]+)[^\n]*?\} : "
)


@EXPORTS.register("saved_model")
def export_saved_model(request: ExportRequest) -> list[str]:
    """Writes the folder TARGET; returns its path.

    Signature `serving_default` takes `images`, encoded JPEG, PNG, GIF or BMP files (N,);
    `pixels` takes what the preprocessing gives, (N, H, W, 3) float32. Both give the outputs of
    `TrainedModel.forward`.
    """
    import tensorflow as tf

    path = user_path(request.target)
    if path.exists() and not (path / "saved_model.pb").exists() and list(path.iterdir()):
        raise ConfigError("TARGET", os.fspath(path), "exists and is no SavedModel")
    model = open_model(request.source, request.config)
    module = build_module(model)
    signatures = {"serving_default": module.images, "pixels": module.pixels}
    tf.saved_model.save(module, os.fspath(path), signatures=signatures)
    return [os.fspath(path)]


def build_module(model: TrainedModel) -> Any:
    """Builds the `tf.Module` with the functions `images` and `pixels`.

    Raises:
      ConfigError: If an op of the preprocessing has no counterpart in TensorFlow.
    """
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    from vmoe_prc.export.tf_preprocessing import build_preprocessing

    program = export_program(model, PLATFORMS)
    size = (*model.image_size, 3)
    preprocess = build_preprocessing(model.preprocessing, size)
    content = _without_composites(program)
    names = sorted(model_outputs := jax.tree.unflatten(program.out_tree, program.out_avals))
    types = [model_outputs[name] for name in names]

    def run(pixels):
        values: Any = xla.call_module(
            [pixels],
            version=program.calling_convention_version,
            module=content,
            Tout=[x.dtype.name for x in types],
            Sout=[[d if isinstance(d, int) else None for d in x.shape] for x in types],
            platforms=[name.upper() for name in program.platforms],
            has_token_input_output=False,
        )
        return dict(zip(names, values, strict=True))

    # TensorFlow saves the attributes that a module is given.
    module: Any = tf.Module(name="vmoe_prc")
    module.classes = tf.Variable(tf.constant(list(model.classes)), trainable=False)
    module.pixels = tf.function(
        run, input_signature=[tf.TensorSpec([None, *size], tf.float32, "pixels")], autograph=False
    )
    # A call, so that the program is in the file once.
    module.images = tf.function(
        lambda images: module.pixels(preprocess(images)),
        input_signature=[tf.TensorSpec([None], tf.string, "images")],
        autograph=False,
    )
    return module


def _without_composites(program: export.Exported) -> bytes:
    """Serialises the program with calls in place of composite ops, such as top-k.

    TensorFlow reads no composite of today's version. The function that defines what a composite
    does is in the program, too.
    """
    text = _COMPOSITE.sub(
        lambda op: f"func.call {op['function']}({op['args']}) : ", program.mlir_module()
    )
    return stablehlo.serialize_portable_artifact_str(text, STABLEHLO_VERSION)
