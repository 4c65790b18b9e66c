"""The pages: links lead somewhere, generated ones are current, the site builds."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")  # without those that leave the project


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    missing = [link for link, _ in LINK.findall(text) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_are_included(page):
    # Formatters take the lines for a program, and the site shows what is left of them.
    lines = re.findall(r"^ *-+ *8 *<.*$", page.read_text(), re.MULTILINE)
    names = [re.fullmatch(r'--8<-- "(\S+)"', line) for line in lines]
    assert all(name and (ROOT / name[1]).exists() for name in names)


def test_commands_have_one_style():
    page = (ROOT / "docs" / "CLI.md").read_text()
    texts = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(texts) == page.count("\n## ") + page.count("\n### ")
    for text in texts:
        assert text.startswith("usage: python -m vmoe_prc.")
        assert "  -h, --help  " in text
        options = re.findall(r"^  (--\S+)( \S+)?(.*)\n(.*)", text, re.MULTILINE)
        for name, value, sentence, following in options:
            assert "_" not in name + (value if value[:2] != " {" else "")
            assert sentence.strip() or following.startswith(" " * 12), f"{name} has no sentence"


@pytest.mark.slow
def test_the_page_of_commands_is_current():
    path = ROOT / ".ci" / "write_cli.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    write_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write_cli)
    assert write_cli.PAGE.read_text() == write_cli.page(), "run `python .ci/write_cli.py`"


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "auxiliary_loss" in (tmp_path / "api" / "index.html").read_text()
    included = re.sub("<.*?>", "", (tmp_path / "extending" / "index.html").read_text())
    assert "class ThresholdRouter" in included
