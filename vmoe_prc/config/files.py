"""Config files: Python, with a function get_config(arguments)."""

import importlib.util
import pathlib

import ml_collections

from vmoe_prc.config import ConfigError


def read_config_file(source: str, field: str) -> ml_collections.ConfigDict:
    """Calls get_config of a config file with the arguments after the colon.

    Raises:
      ConfigError: If there is no such file, or it has no get_config().
    """
    path, _, arguments = source.partition(":")
    if not pathlib.Path(path).is_file():
        raise ConfigError(field, source, "no such file; expected a Python file with get_config()")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    if spec is None:
        raise ConfigError(field, source, "expected a Python file (.py) with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = module.get_config
    except (SyntaxError, ImportError, AttributeError) as error:
        raise ConfigError(field, source, " ".join(str(error).split())) from None
    return get_config(arguments)
