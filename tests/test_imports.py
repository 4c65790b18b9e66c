"""Imports follow the order of the packages; the core loads without TensorFlow."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

import vmoe_prc

PACKAGE = pathlib.Path(vmoe_prc.__file__).parent
# A package or module imports only packages and modules listed before it.
ORDER = [
    "errors",
    "arrays",
    "config",
    "runtime",
    "workdir",
    "data",
    "recipes",
    "convert_config",
    "alignment",
    "schedule",
    "optimizer",
    "models",
    "losses",
    "checkpoints",
    "steps",
    "evaluation",
    "figures",
    "look",
    "train",
    "compile",
    "analysis",
    "analyze",
    "predict",
    "export",
    "serve",
    "report",
    "study",
    "main",
    "__main__",
]
# Loads where TensorFlow is not installed; of `data` only what reads folders does.
CORE = [
    "alignment",
    "checkpoints",
    "config",
    "data.class_folders",
    "evaluation",
    "losses",
    "models",
    "optimizer",
    "recipes",
    "runtime",
    "schedule",
    "steps",
    "train.initialization",
    "workdir.atomic",
    "workdir.layout",
    "workdir.lock",
    "workdir.metrics",
]


def modules(name):
    """Yields the dotted names of a module or of every module of a package."""
    path = PACKAGE / name.replace(".", "/")
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), file


def imports(file):
    """Yields the top-level packages of ours that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vmoe_prc":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmoe_prc."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (name[1] for name in names if name[0] == "vmoe_prc" and len(name) > 1)


def test_every_package_has_a_place():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__"} == set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_imports_follow_the_order(package):
    allowed = {*ORDER[: ORDER.index(package)], package}
    for module, file in modules(package):
        assert set(imports(file)) <= allowed, module


def test_the_drawing_of_the_packages_is_current():
    path = PACKAGE.parent / ".ci" / "draw_imports.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    draw_imports = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_imports)
    page = draw_imports.PAGE.read_text()
    assert draw_imports.drawing() in page, "run `python .ci/draw_imports.py`"


def run_without_tensorflow(code):
    blocked = "import sys; sys.modules['tensorflow'] = sys.modules['clu'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False
    )


def test_core_loads_without_tensorflow():
    names = [name for package in CORE for name, _ in modules(package)]
    code = "\n".join(f"import vmoe_prc.{name}" for name in names)
    result = run_without_tensorflow(code)
    assert result.returncode == 0, result.stderr


def test_the_block_on_tensorflow_works():
    assert run_without_tensorflow("import vmoe_prc.data.pipeline").returncode != 0


@pytest.mark.parametrize("module", ["vmoe_prc", "vmoe_prc.main", "vmoe_prc.data.prepare"])
def test_importing_loads_no_framework(module):
    code = f"import {module}, sys; sys.exit(bool({{'jax', 'tensorflow'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
