"""The configuration of a run: fields, defaults, checks, and files.

A configuration is an `ml_collections.ConfigDict` in the vocabulary of V-MoE. `fields` has the
vocabulary; `complete` checks a configuration against it and fills in the defaults;
`check_batch` checks what only the images and devices can tell.
"""

from vmoe_prc.config.arguments import parse_arguments
from vmoe_prc.config.checks import check_batch, check_schedule
from vmoe_prc.config.derived import Config, evaluation_model, fewshot_sections
from vmoe_prc.config.errors import ConfigError, NotPreparedError, check_regex, nearest
from vmoe_prc.config.resolve import complete, override
from vmoe_prc.config.sections import complete_section
from vmoe_prc.config.values import flatten, plain

__all__ = [
    "Config",
    "ConfigError",
    "NotPreparedError",
    "check_batch",
    "check_regex",
    "check_schedule",
    "complete",
    "complete_section",
    "evaluation_model",
    "fewshot_sections",
    "flatten",
    "nearest",
    "override",
    "parse_arguments",
    "plain",
]
