"""Writes docs/CLI.md from the help of every command.

    python .ci/write_cli.py

`tests/test_docs.py` compares the page with the commands.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "CLI.md"
sys.path.insert(0, str(ROOT))

from vmoe_prc.__main__ import COMMANDS  # noqa: E402

HEAD = """# Commands

<!-- written by .ci/write_cli.py -->

`vmoe-prc COMMAND` and `python -m MODULE` are the same; `vmoe-prc` is there once the package is
installed, and `python -m vmoe_prc COMMAND` always. Commands that train end with status 0 when the
run has ended, 1 when it cannot continue, 2 when the command or its configuration is wrong, and 75
after SIGTERM, once a checkpoint is written.
"""
# Commands of commands.
PARTS = {
    "analyze": [
        *("agreement", "pictures", "specialisation", "robustness", "table", "swap", "ramp"),
        *("capacity", "information", "margins", "stability"),
    ]
}


# Prints the help of a command and its parts as JSON: one process imports the command once.
SHOW = """
import contextlib, io, json, runpy, sys
module, parts = json.loads(sys.argv[1])
texts = []
for part in parts:
    sys.argv = [module, *part, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    texts.append(text.getvalue())
print(json.dumps(texts))
"""


def shown(module: str, parts: Sequence[str]) -> list[str]:
    """Returns the help of a command and of its parts as they are printed 100 columns wide."""
    result = subprocess.run(
        [sys.executable, "-c", SHOW, json.dumps([module, [[], *([part] for part in parts)]])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
    )
    texts = json.loads(result.stdout.splitlines()[-1])
    return [text.replace(f"{ROOT}/", "").strip() for text in texts]


def page() -> str:
    """Returns the text of the page."""
    sections = [HEAD]
    for name, (module, sentence) in COMMANDS.items():
        parts = PARTS.get(name, [])
        titles = [f"## `{name}`: {sentence}", *(f"### `{name} {part}`" for part in parts)]
        for title, text in zip(titles, shown(module, parts), strict=True):
            sections.append(f"\n{title}\n\n```text\n{text}\n```\n")
    return "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page())
