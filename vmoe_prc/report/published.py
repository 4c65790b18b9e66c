"""Published figures (Kada et al., IEEE OJSP 2025, doi 10.1109/OJSP.2025.3536853), in %.

V-MoE-S/32 with 8 experts. A standard deviation of None was not given.
"""

# Method and k.
Variant = tuple[str, int | None]
# Mean and standard deviation.
Published = tuple[float, float | None]

# Top-1 accuracy by data set (its TFDS name), method and k: mean, standard deviation.
ACCURACIES: dict[str, dict[Variant, Published]] = {
    "imagenet2012": {
        ("V-MoE", 1): (75.23, 0.01),
        ("PRC", 1): (75.92, 0.02),
        ("V-MoE", 2): (75.84, 0.04),
        ("PRC", 2): (76.27, 0.01),
    },
    "cifar100": {
        ("V-MoE", 1): (81.18, 0.07),
        ("PRC", 1): (82.12, 0.18),
        ("V-MoE", 2): (81.38, 0.03),
        ("PRC", 2): (82.27, 0.10),
    },
    "cifar10": {
        ("V-MoE", 1): (94.81, 0.06),
        ("PRC", 1): (95.12, 0.16),
        ("V-MoE", 2): (95.20, 0.07),
        ("PRC", 2): (95.36, 0.02),
    },
    "oxford_flowers102": {
        ("V-MoE", 1): (90.21, None),
        ("PRC", 1): (91.24, None),
        ("V-MoE", 2): (89.30, None),
        ("PRC", 2): (90.18, None),
    },
}
# Agreement of the experts of matched patches, k = 2, ImageNet-1K.
AGREEMENTS: dict[str, dict[Variant, dict[str, Published]]] = {
    "imagenet2012": {
        ("V-MoE", 2): {
            "top1": (63.04, None),
            "top2": (34.77, None),
            "top2_unordered": (45.44, None),
        },
        ("PRC", 2): {
            "top1": (75.78, None),
            "top2": (48.54, None),
            "top2_unordered": (58.96, None),
        },
    }
}
