"""Every kind of photo: its pixels in a data set of photos, and in `predict`."""

import os

import ml_collections
import numpy as np
import pytest
from PIL import Image, features

from vmoe_prc.config.fields import Dataset
from vmoe_prc.config.sections import complete_section
from vmoe_prc.data.examples import Parser, features_of
from vmoe_prc.data.split import open_splits
from vmoe_prc.predict.preprocessing import Preprocessing
from vmoe_prc.recipes import DECODE_PHOTO

SIDE = 16
OPS = f"{DECODE_PHOTO}|resize({SIDE})|value_range(0, 255)"


def quarters(*colors):
    """Four quarters of one colour each, which JPEG keeps well: no two are alike."""
    blocks = np.array(colors, np.uint8).reshape(2, 2, -1)
    return blocks.repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1)


RGB = quarters((200, 40, 30), (30, 180, 60), (20, 60, 200), (240, 230, 220))
# The first quarter is transparent, with a colour below; the second is half transparent.
RGBA = np.dstack([RGB, quarters((0,), (128,), (255,), (255,))])
ALPHA = RGBA[..., 3:] / 255
ON_WHITE = np.rint(RGB * ALPHA + 255 * (1 - ALPHA))
# GIF, and a palette with one transparent colour, know no half.
CUT_OUT = np.where(RGBA[..., 3:] == 0, 255, RGB)
GRAY = quarters((10,), (90,), (170,), (250,))
DEEP = Image.fromarray(GRAY[..., 0].astype(np.uint16) * 256 + 99)
TURNED = Image.Exif()
TURNED[0x0112] = 6
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)], "duration": 100}
PALETTE = Image.fromarray(RGB).quantize(4)
# Chroma is stored in full: half of it would blur the edges of the quarters.
# Suffix, picture, options of saving, pixels, largest mean difference.
KINDS = {
    "png": ("png", RGB, {}, RGB, 0),
    "bmp": ("bmp", RGB, {}, RGB, 0),
    "tiff": ("tiff", RGB, {}, RGB, 0),
    "webp": ("webp", RGB, {"lossless": True}, RGB, 0),
    "jpeg": ("jpg", RGB, {"subsampling": 0, "quality": 95}, RGB, 3),
    "progressive": ("JPEG", RGB, {"subsampling": 0, "quality": 95, "progressive": True}, RGB, 3),
    "cmyk": ("jpg", Image.fromarray(RGB).convert("CMYK"), {"quality": 95}, RGB, 3),
    "gray": ("png", GRAY[..., 0], {}, GRAY.repeat(3, -1), 0),
    "deep_png": ("png", DEEP, {}, GRAY.repeat(3, -1), 0),
    "deep_tiff": ("tif", DEEP, {}, GRAY.repeat(3, -1), 0),
    "palette": ("png", PALETTE, {}, RGB, 0),
    "alpha_png": ("png", RGBA, {}, ON_WHITE, 1),
    "alpha_webp": ("webp", RGBA, {"lossless": True, "exact": True}, ON_WHITE, 1),
    "alpha_tiff": ("tiff", RGBA, {}, ON_WHITE, 1),
    "alpha_palette": ("png", PALETTE, {"transparency": PALETTE.getpixel((0, 0))}, CUT_OUT, 0),
    "alpha_gif": ("gif", PALETTE, {"transparency": PALETTE.getpixel((0, 0))}, CUT_OUT, 0),
    "gif": ("GIF", RGB, FRAMES, RGB, 0),
    "animated_webp": ("webp", RGB, {**FRAMES, "lossless": True}, RGB, 0),
    "animated_png": ("png", RGB, FRAMES, RGB, 0),
    "turned_jpeg": (
        "jpg",
        RGB,
        {"subsampling": 0, "exif": TURNED, "quality": 95},
        np.rot90(RGB, -1),
        6,
    ),
    "turned_png": ("png", RGB, {"exif": TURNED}, np.rot90(RGB, -1), 0),
    "turned_webp": ("webp", RGB, {"exif": TURNED, "lossless": True}, np.rot90(RGB, -1), 0),
    "turned_tiff": ("tiff", RGB, {"exif": TURNED}, np.rot90(RGB, -1), 0),
    "turned_alpha": ("png", RGBA, {"exif": TURNED}, np.rot90(ON_WHITE, -1), 1),
}
if features.check("avif"):
    KINDS["avif"] = ("avif", RGB, {"subsampling": "4:4:4", "quality": 95}, RGB, 3)
    KINDS["turned_avif"] = (
        "avif",
        RGB,
        {"subsampling": "4:4:4", "exif": TURNED, "quality": 95},
        np.rot90(RGB, -1),
        6,
    )
    KINDS["alpha_avif"] = ("avif", RGBA, {"subsampling": "4:4:4", "quality": 95}, ON_WHITE, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of all kinds in folders of two classes."""
    root = tmp_path_factory.mktemp("kinds")
    paths = {}
    for i, (kind, (suffix, picture, options, *_)) in enumerate(KINDS.items()):
        paths[kind] = root / "photos" / "ab"[i % 2] / f"{kind}.{suffix}"
        paths[kind].parent.mkdir(parents=True, exist_ok=True)
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(paths[kind], **options)
    return paths


@pytest.fixture(scope="module")
def trained_on(files):
    """What training sees, by kind."""
    photos = next(iter(files.values())).parents[1]
    process = f'{OPS}|onehot(2)|keep("image", "labels")'
    options = {"name": "folder", "manual_dir": str(photos), "data_dir": str(photos.parent / "data")}
    section = {**options, "process": process, "batch_size": 1}
    splits = open_splits(
        {
            name: ml_collections.ConfigDict(
                complete_section({**section, "split": name}, Dataset, name)
            )
            for name in ("train", "test")
        }
    )
    seen = {}
    for split in splits.values():
        assert split.builder.left_out == []
        parse, preprocess = Parser(features_of(split.builder)), split.preprocess(0)
        for number, record in enumerate(split.records.read(range(split.num_examples))):
            name = os.path.basename(parse(record)["file_name"].decode())
            seen[os.path.splitext(name)[0]] = preprocess.one(number, record)["image"]
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_prediction_see_the_same_pixels(files, trained_on, kind):
    *_, expected, tolerance = KINDS[kind]
    predicted = Preprocessing(OPS)(files[kind])
    np.testing.assert_array_equal(np.asarray(trained_on[kind], np.float32), predicted)
    assert np.abs(predicted - expected).mean() <= tolerance
    if tolerance < 2:  # Without loss, an opened picture is the same as its file.
        with Image.open(files[kind]) as picture:
            np.testing.assert_array_equal(Preprocessing(OPS)(picture), predicted)
