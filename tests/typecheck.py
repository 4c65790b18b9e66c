"""The type checker that the tests run the package under: an int is a float, too."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
