"""Some of the cases of the fuzz command, of every kind."""

import pytest

from benchmarks import fuzz_checkpoints


@pytest.mark.parametrize(
    ("kind", "count"), [("run", 40), ("npz", 60), ("safetensors", 60), ("vmoe", 60)]
)
def test_damaged_checkpoints_are_refused_in_a_line_or_read_right(kind, count):
    ends, failures = fuzz_checkpoints.run(count, kinds=(kind,))
    assert not failures, "\n".join(failures)
    # Both ends occur: the damage does something, and not everything is refused.
    assert ends[kind]["refused"] and ends[kind]["used"]
