"""Compiled programs are kept on disk, so that the next run need not compile them again."""

import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache


def use_compilation_cache(directory: str | os.PathLike | None = None) -> None:
    """Sets the directory of JAX's persistent compilation cache, unless the user has set one.

    JAX's own variables decide the rest: JAX_COMPILATION_CACHE_DIR names another directory (a
    `gs://` bucket for a pod), JAX_ENABLE_COMPILATION_CACHE=false turns it off,
    JAX_COMPILATION_CACHE_MAX_SIZE bounds its bytes. Programs that compile in under a second
    are not kept (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS).

    Args:
      directory: The directory; by default `vmoe_prc/jax` in the user's cache directory.
    """
    # JAX adds its options to the class `Config` when they are defined.
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if not enabled or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    directory = os.fspath(directory or default_directory())
    current = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if directory != current:
        jax.config.update("jax_compilation_cache_dir", directory)
        compilation_cache.reset_cache()


def default_directory() -> pathlib.Path:
    """Returns the directory of the cache: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "vmoe_prc" / "jax"
