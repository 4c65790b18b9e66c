"""The pictures of finished runs, and what they refuse."""

import matplotlib.image
import numpy as np
import pytest

from vmoe_prc import analyze
from vmoe_prc.analysis.figures.pictures import draw_pictures, make_patch_router
from vmoe_prc.analysis.naming import distinct_names
from vmoe_prc.analysis.opened_run import name_apart, open_run
from vmoe_prc.analysis.routing_table import routing_table
from vmoe_prc.config import ConfigError

BLOCK = "encoderblock_1"


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished[0])


@pytest.mark.slow
def test_the_command_draws_two_runs(finished, tmp_path, capsys):
    workdir, _ = finished
    arguments = [f"--workdir={workdir}", f"--workdir={workdir}", f"--output={tmp_path}"]
    assert analyze.main(["pictures", *arguments, "--images=2", "--perturbation=shift=0,1"]) == 0
    paths = [tmp_path / line.rsplit("/", 1)[1] for line in capsys.readouterr().out.splitlines()]
    kinds = [path.name.partition("_")[0].partition(".")[0] for path in paths]
    assert kinds == ["map", "map", "sequence", "views", "views", "comparison"]
    assert len(set(paths)) == 6
    for path in paths:
        assert matplotlib.image.imread(path)[..., :3].std() > 0


def test_maps_show_what_the_table_lists(run):
    batch = next(iter(run.batches("test")))
    routing = make_patch_router(run)(np.asarray(batch["image"]))[BLOCK]
    table = next(routing_table(run, "test"))
    patches = table[table["row"] >= 0]
    at = (patches["image"], patches["row"], patches["col"], patches["rank"] - 1)
    np.testing.assert_array_equal(routing.experts[at], patches["expert"])
    np.testing.assert_array_equal(routing.kept[at], patches["kept"])


def test_runs_of_one_name_are_told_apart(run):
    runs = name_apart([run, run, run], ["p/a/x", "b/x", "b/x"])
    assert [run.name for run in runs] == ["a/x", "b/x", "b/x (2)"]
    assert name_apart([run], ["a/x"])[0].name == run.name


def test_names_are_as_short_as_can_be():
    assert distinct_names([("PRC", "PRC, k=1"), ("V-MoE", "V-MoE, k=1")]) == ["PRC", "V-MoE"]
    assert distinct_names([("PRC", "PRC, k=1"), ("PRC", "PRC, k=2")]) == ["PRC, k=1", "PRC, k=2"]
    assert distinct_names([("a", "b/a")] * 2) == ["b/a", "b/a (2)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ["encoderblock_0"]}, "has no experts"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"sequences": {"shove": (0,)}}, "--perturbation = 'shove': unknown"),
        ({"sequences": {"pgd": (0,)}}, "--perturbation = 'pgd': is an attack"),
        ({"num_images": 0}, "--images = 0"),
    ],
)
def test_errors(run, options, message):
    with pytest.raises(ConfigError, match=message):
        list(draw_pictures([run], **options))
