"""The estimate of what recipes cost."""

import math
import pathlib
import re

import pytest

from benchmarks import cost
from configs import cifar_prc, imagenet21k_vmoe, imagenet_prc
from vmoe_prc.models.flops import forward_flops_per_image
from vmoe_prc.runtime.peaks import peak_flops


def test_both_arms_cost_the_same_and_pairs_are_decoded_once():
    config = imagenet_prc.get_config()
    pairs, single = (cost.work_of(imagenet_prc.get_config(f"prc={x}")) for x in ("on", "off"))
    assert pairs.steps == single.steps == math.ceil(300 * round(0.99 * 1_281_167) / 1024)
    forward = forward_flops_per_image(config.model.to_dict(), (224, 224))
    assert pairs.step_flops == single.step_flops == 3 * 1024 * forward
    assert (pairs.step_images, single.step_images) == (512, 1024)


def test_steps_of_the_other_recipes():
    assert cost.work_of(cifar_prc.get_config()).steps == 5_000
    steps = cost.work_of(imagenet21k_vmoe.get_config()).steps
    assert steps == math.ceil(300 * (14_197_122 - 102_400) / 4096)


def test_shapes_come_from_the_preprocessing():
    keep = 'value_range(-1, 1)|keep("image")'
    assert cost.image_shape(f"decode|two_views(64)|{keep}") == (2, 64, 64, 3)
    assert cost.image_shape(f"decode|resize(40)|central_crop(32)|{keep}") == (32, 32, 3)


def test_numbers_have_two_digits_that_count():
    values = (0.0326, 0.0996, 3.351, 12.04, 1978.77, 46953.0)
    assert [cost.rounded(x) for x in values] == ["0.033", "0.10", "3.4", "12", "2,000", "47,000"]


@pytest.mark.slow
def test_the_table_follows_its_formula(capsys):
    assert cost.main(["--utilisation=0.5", "--devices=TPU v4"]) == 0
    out = capsys.readouterr().out
    assert "an assumed 50% of its peak" in out
    row = next(line for line in out.splitlines() if line.startswith("| ImageNet-1K |"))
    work = cost.work_of(imagenet_prc.get_config())
    seconds = work.step_flops / (0.5 * peak_flops("TPU v4", "bfloat16"))
    assert row.split(" | ")[1] == f"{work.steps:,}"
    numbers = map(cost.rounded, (seconds, seconds * work.steps / 3600, 512 / seconds))
    assert row.endswith("{} s, {} h, {}/s |".format(*numbers))
    assert sum(line.startswith("| ") for line in out.splitlines()) == 2 + len(cost.RECIPES)


@pytest.mark.parametrize("wrong", ["--devices=TPU v99", "--utilisation=0", "--utilisation=30"])
def test_what_cannot_be_estimated(capsys, wrong):
    with pytest.raises(SystemExit):
        cost.main([wrong])
    assert wrong.partition("=")[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_documented_costs_are_those_that_the_command_prints(capsys):
    document = (pathlib.Path(__file__).parents[2] / "docs" / "COST.md").read_text()
    (devices,) = re.findall(r'benchmarks.cost --devices="(.*?)"', document)
    cost.main([f"--devices={devices}"])
    table = capsys.readouterr().out.partition("| recipe")[2]
    assert table and table in document
