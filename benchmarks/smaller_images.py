"""What copies with smaller images, and JPEGs decoded at a part of their size, save and change.

    python -m benchmarks.smaller_images --output=workdir/smaller_images.json

Parts of scikit-learn's photographs, with noise, as JPEGs of 500x375 and of 2000x1500 pixels. The
preprocessing is two random crops of 224 pixels and a flip. `CPU ratio` is the CPU time per image
relative to the original images of the same size, of one thread. `difference` is the mean absolute
difference from the original, of 255, where both are reduced to 224x224 pixels by areas.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from benchmarks import timing
from benchmarks.input_pipeline import HEIGHT, WIDTH, encode, photograph
from vmoe_prc.data.ops import registry
from vmoe_prc.data.ops.decoding import decode_image
from vmoe_prc.data.resized import shrink

COUNT = 16
# By name: shorter side of the copy, and `min_side` of `decode`.
VARIANTS: dict[str, tuple[int | None, int | None]] = {
    "original": (None, None),
    "--short_side=400": (400, None),
    "--short_side=256": (256, None),
    "decode(min_side=448)": (None, 448),
    "decode(min_side=187)": (None, 187),
}


def images(scale: int) -> list[bytes]:
    """Encodes photographs of 500x375 pixels, enlarged by a factor."""
    rng = np.random.default_rng(0)
    photographs = [photograph(rng) for _ in range(COUNT)]
    if scale == 1:
        return [encode(x) for x in photographs]
    size = (WIDTH * scale, HEIGHT * scale)
    large = [cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in photographs]
    return [cv2.imencode(".jpg", x[..., ::-1])[1].tobytes() for x in large]


def process(ops: Sequence[registry.Op], encoded: Sequence[bytes]) -> None:
    """Preprocesses all images."""
    for i, image in enumerate(encoded):
        registry.apply(ops, {"image": image}, seed=i)


def reduced(encoded: bytes, min_side: int | None) -> np.ndarray:
    """Decodes an image and reduces it to 224x224 pixels."""
    pixels = decode_image(encoded, min_side=min_side)
    return cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_AREA).astype(np.float32)


def rows_of(scale: int, repetitions: int) -> list[dict[str, object]]:
    """Measures all variants of images of one size."""
    originals = images(scale)
    files, functions = {}, {}
    for name, (short_side, min_side) in VARIANTS.items():
        files[name] = [shrink(x, short_side, 95) for x in originals] if short_side else originals
        text = f"decode(min_side={min_side})|two_views(224, (5, 100), (5, 100))|flip_lr"
        ops = registry.build(text, "process")
        functions[name] = functools.partial(process, ops, files[name])
    times = timing.compare(timing.take_turns(functions, repetitions), "original")
    whole = [reduced(x, None) for x in originals]
    result = []
    for name, (_, min_side) in VARIANTS.items():
        pairs = zip(files[name], whole, strict=True)
        result.append(
            {
                "pixels": f"{WIDTH * scale}x{HEIGHT * scale}",
                "images": name,
                "bytes, ratio": sum(map(len, files[name])) / sum(map(len, originals)),
                "CPU ratio": times[name]["cpu_ratio"],
                "difference": float(
                    np.mean([np.abs(reduced(x, min_side) - y).mean() for x, y in pairs])
                ),
            }
        )
    return result


def main(argv: list[str] | None = None) -> None:
    """Measures images of both sizes."""
    args = timing.parser(__doc__, repetitions=5).parse_args(argv)
    cv2.setNumThreads(1)
    timing.report(args, [row for scale in (1, 4) for row in rows_of(scale, args.repetitions)])


if __name__ == "__main__":
    main()
