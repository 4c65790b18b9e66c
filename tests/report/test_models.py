"""The page about models that were trained: pictures beside one another, measures, saved figures."""

import shutil

import PIL.Image
import pytest
from browsing import WIDTHS, assert_whole, show
from small_run import small_config
from written_runs import write_arm, write_run

from configs import digits_prc
from vmoe_prc.report.__main__ import main
from vmoe_prc.report.experiments import group_runs
from vmoe_prc.report.models import open_models, runs_by_seed, short_names
from vmoe_prc.report.runs import find_runs
from vmoe_prc.train import loop

FEW = "test[:60]"  # Among them is an image of each class.


def copied(source, target, old, new, ignore=()):
    """Copies a run as if its configuration had been another."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignore))
    config = target / "config.json"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def with_seed(source, target, seed, ignore=()):
    copied(source, target, '"seed": 0', f'"seed": {seed}', ignore)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, finished, digits_dir):
    """V-MoE and PRC with three seeds, one without its checkpoint, and saved figures."""
    directory = tmp_path_factory.mktemp("runs")
    few = {"dataset.test.split": FEW, "dataset.test_pairs.split": FEW}
    loop.train_and_evaluate(small_config(digits_dir, "prc=off", **few), directory / "vmoe-0")
    copied(finished[0], directory / "prc-0", '"split": "test"', f'"split": "{FEW}"')
    for seed in (1, 2):
        with_seed(directory / "prc-0", directory / f"prc-{seed}", seed)
    with_seed(directory / "vmoe-0", directory / "vmoe-1", 1)
    with_seed(directory / "vmoe-0", directory / "vmoe-2", 2, ignore=["checkpoints"])
    saved = directory / "vmoe-0" / "analysis"
    saved.mkdir()
    (saved / "specialisation_test").mkdir()
    for name in ("mine.png", "specialisation_test/encoderblock_1.png"):
        PIL.Image.new("RGB", (64, 32)).save(saved / name)
    (saved / "broken.png").write_text("no picture")
    return directory


def captions(browser, section):
    script = """
        const titles = [...document.querySelectorAll('h2')];
        const section = titles.find(h => h.textContent === arguments[0]).parentElement;
        return [...section.querySelectorAll('figcaption')].map(c => c.textContent);
    """
    return browser.execute_script(script, section)


@pytest.mark.slow
def test_pictures_of_all_models(browser, runs, capsys):
    assert main([str(runs), "--html"]) == 0
    # Libraries log there, too.
    lines = capsys.readouterr().err.splitlines()
    without_checkpoint, broken = [line for line in lines if line.startswith("warning: ")]
    assert f"no figures of {runs / 'vmoe-2'}" in without_checkpoint
    assert "broken.png" in broken
    page = runs / "report.html"
    for width in WIDTHS:
        show(browser, page, width)
        assert_whole(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    check_explorer(browser)
    assert browser.get_log("browser") == []
    assert captions(browser, "Two views, side by side") == [
        "V-MoE and PRC, seed 0",
        "V-MoE and PRC, seed 1",
    ]
    assert captions(browser, "Matched patches") == ["V-MoE, seed 0", "PRC, seed 0"]
    assert captions(browser, "Routing maps") == ["V-MoE, seed 0", "PRC, seed 0"]
    assert captions(browser, "Saved analyses") == [
        "vmoe-0: mine.png",
        "vmoe-0: specialisation_test/encoderblock_1.png",
    ]
    assert captions(browser, "Specialisation") == ["V-MoE, encoderblock_1", "PRC, encoderblock_1"]
    alts = browser.execute_script("return [...document.images].map(image => image.alt)")
    assert "Robustness of V-MoE and PRC to noise and small shifts." in alts
    shown = browser.execute_script("return document.querySelector('.warnings').textContent")
    assert "vmoe-2" in shown and "broken.png" in shown


def explore(browser, selector, event, value):
    script = """
        const control = document.querySelector(arguments[0]);
        control.value = arguments[2];
        control.dispatchEvent(new Event(arguments[1]));
    """
    browser.execute_script(script, selector, event, value)


def check_explorer(browser):
    """Steps through the maps as a reader does."""
    data = browser.execute_script(
        "return JSON.parse(document.querySelector('.explorer script').textContent)"
    )
    assert [model["name"] for model in data["models"]] == ["V-MoE", "PRC"]
    titles = [image["title"] for image in data["images"]]
    assert len(set(titles)) == 10
    assert data["steps"][0] == "no change" and "shift, 4" in data["steps"]
    # The last step moves the picture, and crosses mark what follows from the data.
    explore(browser, ".explorer input", "input", len(data["steps"]) - 1)
    for number in (0, 1):
        steps = data["images"][0]["choices"][number]["encoderblock_1"]
        pairs = zip(steps[0]["experts"], steps[-1]["experts"], strict=True)
        changed = sum(a[0] != b[0] for a, b in pairs)
        article = f"document.querySelector('.explorer [data-model=\"{number}\"]')"
        crosses = f"return {article}.querySelectorAll('path:not(.under)').length"
        assert browser.execute_script(crosses) == changed
    # Classes filter the images.
    explore(browser, ".explorer select", "change", titles[3])
    shown = browser.execute_script("return document.querySelector('.explorer img').src")
    assert shown == data["images"][titles.index(titles[3])]["pictures"][-1]
    # A patch is marked in both maps.
    rect = "document.querySelector('.explorer [data-patch=\"5\"]')"
    browser.execute_script(f"{rect}.dispatchEvent(new MouseEvent('click'))")
    marked = "return document.querySelectorAll('.explorer rect.marked').length"
    assert browser.execute_script(marked) == 2
    says = browser.execute_script("return document.querySelector('.map-says').textContent")
    assert says.startswith("Row 2, column 2: expert ")


def arms(directory, *arguments):
    for argument, seeds in arguments:
        write_arm(directory, argument, [0.5] * seeds)
    return group_runs(find_runs([directory])[0])[0]


def test_names_are_as_short_as_can_be(tmp_path):
    assert short_names(arms(tmp_path / "a", ("prc=on", 1), ("prc=off", 1))) == ["V-MoE", "PRC"]
    by_k = arms(tmp_path / "b", ("k=1,prc=on", 1), ("k=2,prc=on", 1))
    assert short_names(by_k) == ["PRC, k=1", "PRC, k=2"]


def test_a_dense_model_has_no_routing_to_show(tmp_path):
    config = digits_prc.get_config("prc=off")
    config.model.encoder.moe.layers = ()
    write_run(tmp_path / "dense", config, 0.5)
    [run] = find_runs([tmp_path])[0]
    assert open_models({"dense": run}) == ([], [])


def test_side_by_side_are_runs_of_one_seed(tmp_path):
    groups = runs_by_seed(arms(tmp_path, ("prc=on", 3), ("prc=off", 2)))
    assert {seed: list(runs) for seed, runs in groups.items()} == {
        0: ["V-MoE", "PRC"],
        1: ["V-MoE", "PRC"],
        2: ["PRC"],
    }
