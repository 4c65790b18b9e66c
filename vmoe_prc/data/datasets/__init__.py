"""Data sets of our own, which are prepared when they are first used."""

from vmoe_prc.data.datasets.digits import Digits
from vmoe_prc.data.datasets.folder import Folder

OWN_BUILDERS = {"digits": Digits, "folder": Folder}
