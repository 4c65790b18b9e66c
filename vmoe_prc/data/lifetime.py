"""Ends the threads that read data before the interpreter ends.

A thread of TensorFlow that calls into an interpreter which is about to go never returns, and the
one that ends the program waits for it.
"""

import atexit
import functools
import weakref
from collections.abc import Callable, Generator
from typing import Any

_open: weakref.WeakSet[Generator] = weakref.WeakSet()


def closed_at_exit(function: Callable[..., Generator]) -> Callable[..., Generator]:
    """Makes a generator function whose generators do not outlive the program."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Generator:
        generator = function(*args, **kwargs)
        _open.add(generator)
        return generator

    return wrapped


@atexit.register
def _close() -> None:
    for generator in list(_open):
        generator.close()
