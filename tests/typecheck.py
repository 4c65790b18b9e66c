"""Checks the types of the package's functions while the tests call them.

Modules that annotate shapes are checked by jaxtyping, which binds the letters of all arguments of a
call. That takes some 30 microseconds, which is most of the time of functions as small as the ones
that read a configuration, so that all other modules are checked by beartype alone.
"""

import pathlib

import beartype
import beartype.claw
import jaxtyping

PACKAGE = pathlib.Path(__file__).parents[1] / "vmoe_prc"
# An int is a float, too.
CONF = beartype.BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)

check = beartype.beartype(conf=CONF)


def modules_with_shapes():
    """Returns the names of modules that annotate shapes; that of a package includes all in it."""
    paths = [path for path in PACKAGE.rglob("*.py") if "vmoe_prc.arrays import" in path.read_text()]
    names = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths]
    return sorted(".".join(parts).removesuffix(".__init__") for parts in names)


def install():
    """Installs the checks, for modules that are imported later."""
    beartype.claw.beartype_package("vmoe_prc", conf=CONF)
    jaxtyping.install_import_hook(modules_with_shapes(), "typecheck.check")
