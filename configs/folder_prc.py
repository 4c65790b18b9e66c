"""Fine-tunes V-MoE-S/32 with PRC on your own images, one folder a class.

    python -m vmoe_prc.main --config=configs/folder_prc.py:dir=PATH \
        --config.initialization.prefix=WORKDIR_OF_IMAGENET_PRC

PATH holds CLASS/*.jpg and so on, or train/CLASS/ and test/CLASS/. Files that cannot be used are
listed with the reason. Photos are turned upright by their EXIF orientation, and transparent
pictures laid on white. Steps, batch and intervals follow from the number of training images, see
`vmoe_prc.recipes.sizes`; the log begins with them. Those for 50,000 images are nearly the paper's.
Other arguments: `steps=N`, `k=1` one expert per token, `prc=off` the V-MoE baseline, `seed=N`,
`size=128` the side of the images in pixels. `dataset=parquet,dir=PATH` takes other formats, and
`dataset=oxford_flowers102` any prepared data set, see docs/DATA.md.

    python -m vmoe_prc.main --config=configs/folder_prc.py:dir=PATH,pretrained=VIT

starts from a vision transformer of timm or Hugging Face instead: VIT is its folder, with
`model.safetensors` and `config.json`, or the file, or an `.npz` file of Google's ViT. Its last
`moe_layers=2` MLPs, every other one, become `experts=8` copies, with noise of `noise=0.01` of the
spread of their weights; with `clusters=512` they are made from clusters of the tokens of 512 images
instead; `experts=0` keeps the model dense, without PRC.
"""

from vmoe_prc.checkpoints.manager import CheckpointError
from vmoe_prc.checkpoints.pretrained import pretrained_model
from vmoe_prc.config import ConfigError, complete, parse_arguments
from vmoe_prc.recipes import DECODE_PHOTO, FINE_TUNE_IMAGES_PER_STEP, fine_tune
from vmoe_prc.recipes.images import IMAGE_ARGUMENTS, find_images
from vmoe_prc.recipes.sizes import derive_sizes, with_sizes


def get_config(arguments: str = ""):
    args = parse_arguments(
        arguments,
        **IMAGE_ARGUMENTS,
        size=224,
        steps=0,
        k=2,
        prc=True,
        diagonal="matrix",
        seed=0,
        pretrained="",
        experts=8,
        moe_layers=2,
        noise=0.01,
        clusters=0,
    )
    if args.prc and not args.experts:
        raise ConfigError("config argument 'experts'", 0, "PRC needs experts; or give prc=off")
    images = find_images(args)
    config = fine_tune(
        args,
        dataset=args.dataset,
        splits=dict(images.splits),
        num_classes=images.num_classes,
        image_size=args.size,
    )
    sizes = derive_sizes(
        images.sizes["train"],
        images.sizes["test"],
        views_per_image=100,
        most_views=FINE_TUNE_IMAGES_PER_STEP,
        least_steps=500,
        most_steps=20_000,
        steps=args.steps,
    )
    config = with_sizes(config, sizes)
    for split in config["dataset"].values():
        split.update(images.place)
        split["process"] = split["process"].replace("decode", DECODE_PHOTO, 1)
    if args.pretrained:
        try:
            config |= pretrained_model(
                args.pretrained,
                num_classes=images.num_classes,
                image_size=args.size,
                num_experts=args.experts,
                num_selected_experts=args.k,
                num_moe_layers=args.moe_layers,
                noise=0.0 if args.clusters else args.noise,
                cluster_images=args.clusters,
            )
        except CheckpointError as error:
            raise ConfigError("config argument 'pretrained'", args.pretrained, str(error)) from None
        config["description"] = f"{args.pretrained}, E={args.experts}, K={args.k}"
    return complete(config)
