"""Loads TensorFlow without the notes that it prints, and without Keras."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

# No variable of the environment hides these.
_NOTES = re.compile(
    rb"I\d{4} .*|WARNING: All log messages before absl::InitializeLog\(\) .*"
    rb"|To enable the following instructions: .*"
)
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


def quiet_tensorflow() -> None:
    """Hides the notes of TensorFlow's start, if it is loaded later; other lines stay.

    TensorFlow then loads without Keras, which takes two fifths of its time; `tf.keras` loads Keras
    where it is used.
    """
    known = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if "tensorflow" not in sys.modules and not known:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow and loads it without its notes.

    It stays until TensorFlow is loaded: libraries ask for it before, only to know if it is there.
    """

    _is_asking = False

    def find_spec(
        self,
        fullname: str,
        path: Any,  # _NamespacePath is no Sequence.
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow" or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                with contextlib.suppress(ValueError):
                    sys.meta_path.remove(self)
                with without_notes(), _without_keras():
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
    """Asks TensorFlow, while it loads, for the package tf_keras, which is hardly ever installed.

    TensorFlow imports either Keras only to register optimizers for SavedModels, and ignores that
    it cannot. `tf.keras` asks for the variable again, and finds the user's setting.
    """
    if _LEGACY_KERAS in os.environ:
        yield
        return
    os.environ[_LEGACY_KERAS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_LEGACY_KERAS, None)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Holds back what is written to stderr inside, also by C++, and then writes all but notes."""
    sys.stderr.flush()
    try:
        screen = os.dup(2)
    except OSError:  # A program without stderr.
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            held.seek(0)
            for line in held:
                if not _NOTES.match(line):
                    os.write(2, line)
