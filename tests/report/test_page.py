"""The page about runs, as a browser shows it."""

import base64

import pytest
from browsing import WIDTHS, assert_whole, show
from written_runs import write_arm, write_run

from configs import cifar_prc, digits_prc
from vmoe_prc.report import page as pages
from vmoe_prc.report.__main__ import main
from vmoe_prc.report.embedding import Picture

HOSTILE = "<img src=x onerror=alert(1)> & \"quotes\" $a_b$ 'k'"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page about two data sets, one run with a hostile name, and what it warned of."""
    runs = tmp_path_factory.mktemp("runs")
    write_arm(runs, "dataset=cifar100,k=1,prc=on", [0.82, 0.81], cifar_prc)
    write_arm(runs, "dataset=cifar100,k=1,prc=off", [0.80], cifar_prc)
    hostile = digits_prc.get_config("prc=off")
    hostile.description = HOSTILE
    write_run(runs / HOSTILE, hostile, 0.9)
    write_run(runs / "unfinished <b>", digits_prc.get_config("seed=7"), 0.1, finished=False)
    path = tmp_path_factory.mktemp("page") / "a page.html"
    assert main([str(runs), f"--html={path}"]) == 0
    return path


@pytest.fixture
def opened(browser, page):
    return show(browser, page)


def cells_of(browser, title):
    script = """
        const region = [...document.querySelectorAll('[role=region]')]
            .find(r => r.getAttribute('aria-label') === arguments[0]);
        return [...region.querySelectorAll('tr')]
            .map(row => [...row.children].map(cell => cell.textContent.trim()));
    """
    return browser.execute_script(script, title)


@pytest.mark.parametrize(("width", "scheme"), [*zip(WIDTHS, ("light", "dark"), strict=True)])
def test_it_is_whole_and_fits(browser, page, width, scheme):
    show(browser, page, width, scheme)
    assert_whole(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_tables_hold_the_figures_and_the_published_ones_beside(opened):
    header, *rows = cells_of(opened, "Top-1 accuracy (%)")
    assert header == [
        "data set",
        "method",
        "k",
        "seeds",
        "top-1 accuracy",
        "top-1 accuracy, published",
    ]
    assert rows == [
        ["cifar100", "V-MoE", "1", "1", "80.00", "81.18 ± 0.07"],
        ["cifar100", "PRC", "1", "2", "81.50 ± 0.71", "82.12 ± 0.18"],
        ["digits", "V-MoE", "2", "1", "90.00", "-"],
    ]


def test_differences_from_the_baseline(opened):
    header, *rows = cells_of(opened, "Differences over seeds (points), with 95% interval")
    assert header[:3] == ["comparison", "seeds", "top-1 accuracy"]
    assert [row[:3] for row in rows] == [["PRC, k=1 \N{MINUS SIGN} V-MoE, k=1", "1", "+2.00"]]


def test_names_are_shown_as_they_are(opened):
    assert opened.execute_script("return document.querySelectorAll('[onerror], b').length") == 0
    text = opened.execute_script("return document.body.textContent")
    assert HOSTILE in text
    assert "unfinished <b>: not finished" in text


def test_differences_of_configurations(opened):
    header, *rows = cells_of(opened, "Differences of the configurations")
    fields = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    baseline, first, second = (f"dataset=cifar100,k=1,prc={x}" for x in ("off-0", "on-0", "on-1"))
    assert header == ["field", baseline, first, second, HOSTILE]
    assert fields["seed"][second] == "1"
    assert fields["consistency.name"] == {
        "field": "consistency.name",
        baseline: "-",
        first: "prc",
        second: "prc",
        HOSTILE: "-",
    }
    assert "loss.name" not in fields  # the same in all


def test_a_learning_curve_for_each_metric_and_data_set(opened):
    script = "return [...document.querySelectorAll('section h2')].map(h => h.textContent)"
    titles = opened.execute_script(script)
    assert [t for t in titles if "curves" in t] == [
        "Learning curves, cifar100",
        "Learning curves, digits",
    ]
    pictures = opened.execute_script("return [...document.images].map(i => i.alt)")
    assert len([alt for alt in pictures if "PRC, k=1 (2 seeds, one line each) by step" in alt]) == 2


def test_it_prints(opened):
    printed = opened.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_by_default_beside_the_runs(tmp_path, capsys):
    write_arm(tmp_path, "k=2,prc=on", [0.97])
    assert main([str(tmp_path), "--html"]) == 0
    path = tmp_path / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert "97.00" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{dir}/empty", "--html"], "{dir}/empty: no finished run"),
        (["{dir}/missing", "--html"], "{dir}/missing: no such directory"),
        (["{dir}/runs", "--html={dir}/empty"], "{dir}/empty: is a directory"),
        (["{dir}/runs", "--html={dir}/file/page.html"], "{dir}/file"),
        (["{dir}/runs", "--html={dir}/x.html", "--format=csv"], "--html goes without --format"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept")
    write_arm(tmp_path / "runs", "k=2,prc=on", [0.97])
    before = sorted(tmp_path.rglob("*"))
    assert main([argument.format(dir=tmp_path) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error:") and message.format(dir=tmp_path) in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_holds_no_more_pictures_than_a_browser_takes():
    sections = [
        pages.Section("a", "A", pictures=[picture(400), picture(400)]),
        pages.Section("b", "B", explorers=[{"x": "y" * 90}], pictures=[picture(100), picture(90)]),
    ]
    kept, lines = pages.bounded(sections, max_bytes=1_050)
    assert [len(part.pictures) for part in kept] == [2, 1]
    assert kept[1].explorers == sections[1].explorers
    (line,) = lines
    assert line.startswith("B: 1 of 2 pictures are left out") and "0.00105 MB" in line
    assert pages.bounded(sections) == (sections, [])


def picture(size):
    return Picture("s" * (size // 2), "d" * (size // 2), "alt", "caption", 10, 10)


def test_whole_configurations_are_shown_of_some_of_many_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MAX_CONFIGURATIONS", 1)
    write_arm(tmp_path / "runs", "dataset=cifar100,k=1,prc=on", [0.82, 0.81], cifar_prc)
    path = tmp_path / "page.html"
    assert main([str(tmp_path / "runs"), f"--html={path}"]) == 0
    text = path.read_text()
    assert text.count("whole configuration</summary>") == 1
    assert "Whole configurations are shown of 1 of 2 runs." in text
    # Both are in the table of fields that differ.
    assert text.count('<th scope="col">dataset=cifar100') == 2
