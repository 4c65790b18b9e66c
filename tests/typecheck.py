"""Checks the types of the package's functions while the tests call them.

Modules that annotate shapes are checked by jaxtyping, which binds the letters of all arguments of a
call. That takes some 30 microseconds, which is most of the time of functions as small as the ones
that read a configuration, so that other modules are checked by beartype alone. Modules that
import names for type checkers only are left to jaxtyping, too: beartype cannot resolve such names,
and jaxtyping takes them to be of any type.
"""

import pathlib
import re

import beartype
import beartype.claw
import jaxtyping

PACKAGE = pathlib.Path(__file__).parents[1] / "vmoe_prc"
# An int is a float, too.
CONF = beartype.BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)

check = beartype.beartype(conf=CONF)


def modules_of_jaxtyping():
    """Returns the names of the modules that jaxtyping checks; a package covers its modules."""
    found = []
    for path in sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "__init__.py"}):
        if re.search(r"\b(vmoe_prc\.arrays|jaxtyping|TYPE_CHECKING)\b", path.read_text()):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


def install():
    """Installs the checks, for modules that are imported later.

    The module of the package itself is not checked: jaxtyping would take its name for all in it.
    """
    import vmoe_prc  # noqa: F401

    beartype.claw.beartype_package("vmoe_prc", conf=CONF)
    jaxtyping.install_import_hook(modules_of_jaxtyping(), "typecheck.check")
