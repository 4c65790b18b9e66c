"""Writes docs/CLI.md from the help of every command.

    python .ci/write_cli.py

`tests/test_docs.py` compares the page with the commands.
"""

import os
import pathlib
import subprocess
import sys

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


def shown(module: str, *arguments: str) -> str:
    """Returns the help of a command as it is printed 100 columns wide."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
    )
    return result.stdout.replace(f"{ROOT}/", "").strip()


def page() -> str:
    """Returns the text of the page."""
    parts = [HEAD]
    for name, (module, sentence) in COMMANDS.items():
        parts.append(f"\n## `{name}`: {sentence}\n\n```text\n{shown(module)}\n```\n")
        for part in PARTS.get(name, []):
            parts.append(f"\n### `{name} {part}`\n\n```text\n{shown(module, part)}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
