"""What `pip install` brings: requirements, recipes and the installed command."""

import ast
import configparser
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vmoe_prc
from vmoe_prc.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]


def by_name(lines):
    """Returns requirements by their normalised names."""
    lines = [line for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def run(*arguments):
    command = [sys.executable, "-m", "vmoe_prc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_requirements_pin_exactly_what_setup_cfg_asks_for():
    config = setup_cfg()
    extras = config["options.extras_require"]
    # They bring many packages.
    extras = [text for name, text in extras.items() if name not in ("mlflow", "wandb")]
    lists = [config["options"]["install_requires"], *extras]
    declared = by_name(line for text in lists for line in text.splitlines())
    del declared["vmoe-prc"]  # an extra of extras
    pinned = by_name((ROOT / "requirements.txt").read_text().splitlines())
    assert declared.keys() == pinned.keys()
    for name, requirement in pinned.items():
        assert [clause.operator for clause in requirement.specifier] == ["=="], name
        (clause,) = requirement.specifier
        assert declared[name].specifier.contains(clause.version), name
        assert declared[name].extras == requirement.extras, name
        assert declared[name].marker == requirement.marker, name


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_package_lists_its_commands(arguments):
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


def test_version():
    assert run("--version").stdout == f"vmoe_prc {vmoe_prc.__version__}\n"


def test_a_misspelt_command_is_one_line():
    result = run("trian")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "did you mean 'train'?" in result.stderr


def test_arguments_and_the_exit_status_go_through():
    result = run("report", "--format=nothing", "missing")
    assert result.returncode == 2
    assert "invalid choice: 'nothing'" in result.stderr


def test_every_module_that_is_a_program_is_a_command():
    programs = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for file in (ROOT / "vmoe_prc").rglob("*.py")
        if any(
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
            for node in ast.parse(file.read_text()).body
        )
    }
    assert programs == {"vmoe_prc", *(module for module, _ in COMMANDS.values())}


@pytest.mark.slow
def test_a_wheel_brings_the_recipes_and_all_packages(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ["vmoe_prc", "configs"]:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ["setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", tmp_path], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert wheel.name.startswith(f"vmoe_prc-{vmoe_prc.__version__}-")

    def files(folder):
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}

    package = tmp_path / "installed" / "vmoe_prc"
    recipes = {pathlib.Path("configs", file) for file in files(source / "configs")}
    assert files(package) == files(source / "vmoe_prc") | recipes
    # The installed recipes are found by name, in a folder where nothing else is.
    code = "from vmoe_prc.configs import digits_prc; print(digits_prc.get_config().seed)"
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout == "0\n", result.stderr
