"""Makes 300 photos of six classes, as crops of pictures that other packages bring."""

import pathlib

import numpy as np
import skimage
from PIL import Image
from sklearn.datasets import load_sample_image

SOURCES = {
    "cat": skimage.data.chelsea(),
    "coffee": skimage.data.coffee(),
    "motorcycle": skimage.data.stereo_motorcycle()[0],
    "person": skimage.data.astronaut(),
    "flower": load_sample_image("flower.jpg"),
    "temple": load_sample_image("china.jpg"),
}
rng = np.random.default_rng(0)
for name, image in SOURCES.items():
    folder = pathlib.Path("photos", name)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(50):
        side = rng.integers(120, 220)
        top, left = (rng.integers(0, length - side + 1) for length in image.shape[:2])
        crop = image[top : top + side, left : left + side]
        Image.fromarray(crop).save(folder / f"{i}.jpg", quality=95)
