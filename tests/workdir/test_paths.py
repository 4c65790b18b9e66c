"""Paths as users write them."""

import os

import pytest
from etils import epath

from vmoe_prc.workdir.paths import absolute_path, user_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~/x", "/home/me/x"),
        ("file:///tmp/a%20b/c", "/tmp/a b/c"),
        ("file://localhost/tmp", "/tmp"),
        ("gs://bucket/~x", "gs://bucket/~x"),
        ("a/b", "a/b"),
    ],
)
def test_home_and_file_urls_are_local_paths(path, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert os.fspath(user_path(path)) == expected
    assert user_path(epath.Path(expected)) == epath.Path(expected)


def test_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_path("a/../b") == str(tmp_path / "b")
    assert absolute_path("gs://bucket/a") == "gs://bucket/a"
