"""Which config files of google-research/vmoe and m82kada/PRC run here, as Markdown.

    python -m benchmarks.released_configs CHECKOUT...

docs/PARITY.md has the table. Nothing is trained and no data are read: a file runs if its
configuration is complete here, with every op of its preprocessing.
"""

import argparse
import ast
import contextlib
import io
import pathlib
from collections.abc import Iterator

from vmoe_prc.config import ConfigError, complete
from vmoe_prc.config.files import read_released
from vmoe_prc.config.released import is_released
from vmoe_prc.convert_config import Log, converted_fields

# Arguments of files that have several models.
ARGUMENTS = {
    "pretrain_jft4b.py": ("vit-s16", "ec-s16", "soft-s16"),
    "pretrain_laion.py": ("vit-s16", "ec-s16", "soft-s16"),
}


def config_files(checkout: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the config files of a checkout, and the modules that they share."""
    for path in sorted(checkout.rglob("*.py")):
        if "configs" in path.parts and path.name != "__init__.py":
            yield path


def kind(path: pathlib.Path) -> str:
    """Returns 'config' for a file that defines `get_config`, or what else it is."""
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError:
        return "is no Python"
    found = any(isinstance(x, ast.FunctionDef) and x.name == "get_config" for x in tree.body)
    return "config" if found else "is imported by the others"


def judge(source: str, notes: set[tuple[str, str]]) -> tuple[str, str]:
    """Returns what becomes of a config file, and why not if it does not run; adds to notes."""
    try:
        config = read_released(source, "FILE").to_dict()
    except ConfigError as error:
        return "no", str(error)
    if not is_released(config):
        return "no", "is not recognised"
    log = Log()
    with contextlib.redirect_stderr(io.StringIO()):
        fields = converted_fields(config, log)
    if log.refusals:
        return "no", "; ".join(f"`{field}`: {instead}" for field, _, instead in log.refusals)
    complete(fields)
    notes.update(log.notes)
    return "as it is", ""


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    print("| file | runs | what is in the way |\n| --- | --- | --- |")
    counts: dict[str, int] = {}
    notes: set[tuple[str, str]] = set()
    for checkout in args.checkouts:
        for path in config_files(checkout):
            name = path.relative_to(checkout)
            if (reason := kind(path)) != "config":
                print(f"| {name} | no config | {reason} |")
                continue
            for argument in ARGUMENTS.get(path.name, ("",)):
                verdict, reason = judge(f"{path}:{argument}" if argument else str(path), notes)
                label = f"{name}:{argument}" if argument else name
                print(f"| {label} | {verdict} | {reason.replace('|', chr(92) + '|')} |")
                counts[verdict] = counts.get(verdict, 0) + 1
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    print("\nWhat changes in those that run:\n")
    for field, text in sorted(notes):
        print(f"- `{field}`: {text}")


if __name__ == "__main__":
    main()
