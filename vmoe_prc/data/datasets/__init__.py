"""Data sets that TFDS does not have."""

from vmoe_prc.data.datasets.digits import Digits
from vmoe_prc.data.datasets.folder import Folder
from vmoe_prc.data.datasets.imagenet21k import Imagenet21k

__all__ = ["OWN_BUILDERS", "Imagenet21k"]

# Prepared when they are first used. ImageNet-21k is opened like a data set of TFDS, to which
# its import makes it known.
OWN_BUILDERS = {"digits": Digits, "folder": Folder}
