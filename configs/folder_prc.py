"""Fine-tunes V-MoE-S/32 with PRC on your own images, one folder a class.

    python -m vmoe_prc.main --config=configs/folder_prc.py:dir=PATH \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

PATH holds CLASS/*.jpg and so on, or train/CLASS/ and test/CLASS/. Files that cannot be used are
listed with the reason. Photos are turned upright by their EXIF orientation. Other arguments:
`k=1` one expert per token, `prc=off` the V-MoE baseline, `seed=N`, `size=128` the side of the
images in pixels.
"""

from vmoe_prc.config import ConfigError, complete, parse_arguments
from vmoe_prc.data.class_folders import scan_class_folders
from vmoe_prc.recipes import fine_tune


def get_config(arguments: str = ""):
    args = parse_arguments(arguments, dir="", size=224, k=2, prc=True, diagonal="matrix", seed=0)
    try:
        classes = scan_class_folders(args.dir or "PATH").classes
    except ValueError as error:
        raise ConfigError("config argument 'dir'", args.dir, str(error)) from None
    config = fine_tune(
        args,
        dataset="folder",
        splits={"train": "train", "test": "test"},
        num_classes=len(classes),
        image_size=args.size,
    )
    for split in config["dataset"].values():
        split["manual_dir"] = args.dir
        # Phones and cameras store photos as they were held, with a note how to turn them.
        split["process"] = split["process"].replace("decode", "decode(orient=True)", 1)
    return complete(config)
