"""Config files: Python files with a function get_config(arguments)."""

import importlib
import importlib.machinery
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import ml_collections

from vmoe_prc.config.errors import ConfigError, NotPreparedError, nearest
from vmoe_prc.config.released import (
    PACKAGE,
    call_get_config,
    is_released,
    released_package,
)


def read_config_file(
    source: str, field: str, *, prepare: bool = False
) -> ml_collections.ConfigDict:
    """Calls get_config of a config file with the arguments after the colon.

    Modules in the folder of the file can be imported by it and named in `config.imports`. A
    file of google-research/vmoe or m82kada/PRC is converted, see `vmoe_prc.convert_config`.

    Args:
      source: Path of the file, or name of a recipe of ours, and arguments, such as
        `configs/digits_prc.py`, `digits_prc` or `digits_prc:k=1`.
      field: Name of the flag or field that gives `source`, for errors.
      prepare: Whether to prepare a data set that the recipe has to look at. Otherwise nothing is
        written.

    Raises:
      ConfigError: If there is no such file, it has no get_config(), or its code fails; then
        the cause is the exception of that code.
      NotPreparedError: If the recipe has to look at a data set that is not prepared.
    """
    try:
        config = read_released(source, field)
    except NotPreparedError as error:
        if not prepare:
            raise
        error.prepare()
        config = read_released(source, field)
    if is_released(config.to_dict()):
        converter = importlib.import_module("vmoe_prc.convert_config")
        return ml_collections.ConfigDict(converter.convert(config.to_dict(), source))
    folder = find_config_file(source.partition(":")[0], field, source).parent
    return _with_paths_of_imports(config, folder.resolve())


def read_released(source: str, field: str) -> ml_collections.ConfigDict:
    """Does what `read_config_file` does, and leaves configurations of others as they are."""
    name, _, arguments = source.partition(":")
    path = find_config_file(name, field, source)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        with released_package(path):
            get_config = getattr(_run_file(path), "get_config", None)
            config = None if get_config is None else call_get_config(get_config, arguments)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != PACKAGE:
            raise _user_error(field, source, error) from error
        expected = (
            f"imports {error.name}, which is not installed; keep the file in its checkout of "
            "google-research/vmoe or m82kada/PRC, in the folder that is there"
        )
        raise ConfigError(field, source, expected) from None
    except Exception as error:
        raise _user_error(field, source, error) from error
    if get_config is None:
        raise ConfigError(field, source, "has no function get_config(arguments)")
    if isinstance(config, dict):
        config = ml_collections.ConfigDict(config)
    if not isinstance(config, ml_collections.ConfigDict):
        expected = f"get_config() must return a ConfigDict or a dict, not {config!r}"
        raise ConfigError(field, source, expected)
    return config


def find_config_file(name: str, field: str, source: str) -> pathlib.Path:
    """Finds a config file by its path, or one of our recipes by its name.

    Raises:
      ConfigError: If there is none.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".py":
            raise ConfigError(field, source, "expected a Python file (.py) with get_config()")
        return path
    recipes = {
        str(file.relative_to(folder).with_suffix("")): file
        for folder in _recipe_folders()
        for file in sorted(folder.rglob("*.py"))
        if file.name != "__init__.py"
    }
    recipe = name.removeprefix("configs/").removesuffix(".py")
    if recipe in recipes:
        return recipes[recipe]
    expected = f"no such file, and no recipe of this name; recipes: {', '.join(recipes)}"
    raise ConfigError(field, source, expected, nearest(recipe, recipes))


def _recipe_folders() -> list[pathlib.Path]:
    """Folders of our recipes: in the installed package, or next to it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    folders = [package / "configs", package.parent / "configs"]
    return [folder for folder in folders if (folder / "digits_prc.py").is_file()][:1]


def import_modules(names: Sequence[str]) -> None:
    """Imports modules by name, or Python files by path, each once.

    Raises:
      ConfigError: If a module is not found, or its code fails; then the cause is the exception.
    """
    for name in names:
        path = pathlib.Path(name)
        if path.suffix == ".py" and not path.is_file():
            raise ConfigError("config.imports", name, "no such file")
        try:
            if path.suffix == ".py":
                _import_file(path.resolve())
            else:
                importlib.import_module(name)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in (name, name.split(".")[0]):
                expected = "no such module next to the config file or on PYTHONPATH"
                raise ConfigError("config.imports", name, expected) from None
            raise _user_error("config.imports", name, error) from error


def _user_error(field: str, source: str, error: Exception) -> ConfigError:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(field, source, f"its code fails with {text}")


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles a file each time it is run, and leaves no `__pycache__` next to a user's file.

    Python takes compiled code for current if the file has the same second and size, as an edit of
    one digit may.
    """

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError  # Python then neither reads nor writes compiled code.


def _module_of(path: pathlib.Path, name: str) -> tuple[ModuleType, Callable[[ModuleType], None]]:
    """Returns a module that is still empty, and the function that runs its file in it."""
    loader = _FreshLoader(name, str(path))
    spec = importlib.machinery.ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    return importlib.util.module_from_spec(spec), loader.exec_module


def _run_file(path: pathlib.Path) -> ModuleType:
    module, execute = _module_of(path, path.stem)
    execute(module)
    return module


def _import_file(path: pathlib.Path) -> None:
    """Imports a file as the module of its name, unless another module has that name."""
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return
    name = path.stem if known is None else str(path)
    if name not in sys.modules:
        module, execute = _module_of(path, name)
        sys.modules[name] = module
        try:
            execute(module)
        except BaseException:
            del sys.modules[name]
            raise


def _with_paths_of_imports(
    config: ml_collections.ConfigDict, folder: pathlib.Path
) -> ml_collections.ConfigDict:
    """Names modules in the folder of a config by their paths, so that any program finds them."""
    names = config.get("imports")
    # A study file has no such field.
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        return config
    with config.unlocked():
        config.imports = tuple(_path_in(folder, name) or name for name in names)
    return config


def _path_in(folder: pathlib.Path, name: str) -> str | None:
    for file in (folder / name, folder / f"{name.replace('.', '/')}.py"):
        if file.suffix == ".py" and file.is_file():
            return str(file)
    return None
