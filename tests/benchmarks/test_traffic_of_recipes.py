"""The table of docs/PARALLELISM.md."""

import pytest

from benchmarks import traffic
from vmoe_prc.config import ConfigError

IMAGENET = ["--config=configs/imagenet_prc.py", "--image-size=224", "--partitions=8"]


def test_the_worked_example_of_the_docs(capsys):
    traffic.main([*IMAGENET, "--devices=64", "--shard-dense-params"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "tokens all-to-all expert 8 8 14.16 12.39" in lines
    assert "kernels all-gather data x expert 64 49 93.31 91.85" in lines
    assert lines[-1] == "state on a device: 55.7 MB"


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (12, "num_expert_partitions = 8: must divide the number of devices, which is 12"),
        (1024, "batch_size = 512: must be a multiple of 1024 devices"),
    ],
)
def test_devices_that_do_not_fit(devices, message):
    with pytest.raises(ConfigError, match=message):
        traffic.main([*IMAGENET, f"--devices={devices}"])
