"""Writes the drawing of the packages into docs/ARCHITECTURE.md.

    python .ci/draw_imports.py

`tests/test_imports.py` compares the page with the imports.
"""

import ast
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vmoe_prc"
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
START, END = "<!-- imports: written by .ci/draw_imports.py -->", "<!-- end of imports -->"


def files(name: str) -> list[pathlib.Path]:
    """Returns the Python files of a top-level package or module."""
    path = PACKAGE / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported(file: pathlib.Path) -> set[str]:
    """Returns the top-level packages of vmoe_prc that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vmoe_prc":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmoe_prc."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "vmoe_prc" and len(name) > 1}
    return found


def imports() -> dict[str, set[str]]:
    """Returns what each top-level package imports; a package comes after those it imports."""
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    names -= {"__init__", "__pycache__", "__main__"}
    graph = {name: set().union(*map(imported, files(name))) - {name} for name in sorted(names)}
    order, sorter = [], graphlib.TopologicalSorter(graph)
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        sorter.done(*ready)
        order += ready
    return {name: graph[name] for name in order}


def indirect(graph: dict[str, set[str]], name: str) -> set[str]:
    """Returns what a package imports only or also through others."""
    below = set().union(*(graph[used] for used in graph[name]))
    return below.union(*(indirect(graph, used) for used in graph[name]))


def sentence(name: str) -> str:
    """Returns the first line of the docstring of a package or module."""
    path = PACKAGE / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]


def drawing() -> str:
    """Returns the table and the picture of the packages as Markdown."""
    graph = imports()
    rows = [
        f"| `{name}` | {sentence(name)} | {', '.join(sorted(graph[name])) or '-'} |"
        for name in reversed(graph)
    ]
    arrows = [
        f"    {name} --> {used}"
        for name in reversed(graph)
        for used in sorted(graph[name] - indirect(graph, name))
    ]
    return "\n".join(
        [
            START,
            "",
            "```mermaid",
            "graph TD",
            *arrows,
            "```",
            "",
            "| package | what it holds | imports |",
            "| --- | --- | --- |",
            *rows,
            "",
            END,
        ]
    )


def main() -> None:
    """Replaces the drawing in the page."""
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + drawing() + rest.split(END)[1])


if __name__ == "__main__":
    main()
