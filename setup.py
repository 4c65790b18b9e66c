"""Lists the packages; setup.cfg holds everything else.

The recipes in configs/ are installed as `vmoe_prc.configs`, which setup.cfg cannot say together
with `find:`.
"""

from setuptools import find_packages, setup

RECIPES = ["vmoe_prc.configs", "vmoe_prc.configs.ensembles", "vmoe_prc.configs.studies"]

setup(
    packages=[*find_packages(include=["vmoe_prc*"]), *RECIPES],
    package_dir={"vmoe_prc.configs": "configs"},
)
