"""Classifies a photo with each export of the tutorial, by the runtime of that export.

python -m examples.run_exports PHOTO

It reads shared/, photos.stablehlo, photos.onnx and saved/. Only the first one needs this package,
which also makes the pixels for the next two; the last one takes the file.
"""

import pathlib
import sys

import jax
import numpy as np
import onnxruntime
import tensorflow as tf

import vmoe_prc

photo = pathlib.Path(sys.argv[1])
model = vmoe_prc.open("shared")
pixels = model.preprocessing(photo)[None]  # (1, height, width, 3) float32

program = jax.export.deserialize(pathlib.Path("photos.stablehlo").read_bytes())
session = onnxruntime.InferenceSession("photos.onnx")
saved = tf.saved_model.load("saved")
found = {
    "vmoe_prc": model.probabilities(pixels),
    "jax.export": program.call(pixels)["probabilities"],
    "onnxruntime": session.run(["probabilities"], {"pixels": pixels})[0],
    "TensorFlow": saved.signatures["serving_default"](tf.constant([photo.read_bytes()]))[
        "probabilities"
    ],
}
print(" " * 11, *(f"{name:>10.10}" for name in model.classes))
for runtime, probabilities in found.items():
    print(f"{runtime:11}", *(f"{p:10.4f}" for p in np.asarray(probabilities)[0]))
