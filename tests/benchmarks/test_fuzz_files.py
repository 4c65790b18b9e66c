"""A few of the cases of the fuzz command, of every kind."""

import pytest

from benchmarks import fuzz_files


@pytest.mark.parametrize(("kind", "count"), [("image", 60), ("records", 12), ("info", 12)])
def test_damaged_files_are_refused_in_a_line_or_read_right(kind, count):
    ends, failures = fuzz_files.run(count, kinds=(kind,))
    assert not failures, "\n".join(failures)
    # Both ends occur: the damage does something, and not everything is refused.
    assert ends[kind]["refused"] and ends[kind]["used"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_damaged_folders_and_archives(kind):
    _, failures = fuzz_files.run(8, kinds=(kind,))
    assert not failures, "\n".join(failures)
