"""Files of the formats that data sets are made from, as their programs write them."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny_images import encode, pixels

SIDE = 8
NAMES = ("cat", "dog", "emu")
SIZES = {"train": 9, "test": 5}


def image(split, i):
    return np.full((SIDE, SIDE, 3), 20 * i + (split == "test"), np.uint8)


def png(split, i):
    return encode(image(split, i), "png")


def write_parquet(root):
    features = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, size in SIZES.items():
        rows = range(size)
        images = [{"bytes": png(split, i), "path": f"{i}.png"} for i in rows]
        table = pa.table({"image": images, "label": [i % 3 for i in rows]})
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(metadata), path)


def write_webdataset(root):
    for split, size in SIZES.items():
        with tarfile.open(root / f"{split}-000000.tar", "w") as tar:
            for i in range(size):
                label = json.dumps({"label": NAMES[i % 3]}).encode()
                for name, content in ((f"{i:04d}.png", png(split, i)), (f"{i:04d}.json", label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_csv(root):
    for split, size in SIZES.items():
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            for i in range(size):
                (root / "images").mkdir(exist_ok=True)
                (root / "images" / f"{split}{i}.png").write_bytes(png(split, i))
                writer.writerow([f"images/{split}{i}.png", NAMES[i % 3]])


def write_jsonl(root):
    for split, size in SIZES.items():
        (root / split).mkdir()
        lines = []
        for i in range(size):
            (root / split / f"{i}.png").write_bytes(png(split, i))
            lines.append(json.dumps({"file_name": f"{i}.png", "label": NAMES[i % 3]}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))


def write_arrays(root):
    for split, size in SIZES.items():
        images = np.stack([image(split, i) for i in range(size)])
        np.savez(root / f"{split}.npz", images=images, labels=np.arange(size) % 3)


def write_folder(root):
    for split, size in SIZES.items():
        for i in range(size):
            (root / split / NAMES[i % 3]).mkdir(parents=True, exist_ok=True)
            (root / split / NAMES[i % 3] / f"{i}.png").write_bytes(png(split, i))


FORMATS = {
    "folder": [write_folder],
    "parquet": [write_parquet],
    "webdataset": [write_webdataset],
    "listing": [write_csv, write_jsonl],
    "arrays": [write_arrays],
}


def write_archives(root):
    """Writes archives of classes, as ImageNet-21k has."""
    for label in range(3):
        with tarfile.open(root / f"n0000000{label}.tar", "w") as tar:
            for i in range(8):
                content = encode(pixels(8 * label + i), "jpeg")
                info = tarfile.TarInfo(f"n0000000{label}_{i}.JPEG")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
