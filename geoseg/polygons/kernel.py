"""Loops over pixels and arcs, compiled at their first call."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast

import numba
import numpy as np

from geoseg._version import __version__

P = ParamSpec("P")
R = TypeVar("R")

Number: TypeAlias = int | np.integer[Any]

_COMPILING = threading.Lock()
_CONFIG: Any = numba.config
_NJIT: Any = numba.njit


class Kernel(Generic[P, R]):
    """A function that numba compiles at its first call and keeps in the user's cache folder.

    Numba's own ``cache=True`` looks for its folder when a module is imported, writes beside the source, and refuses to
    work where no folder is writable. Here importing touches no disk, the folder is ``NUMBA_CACHE_DIR`` or
    ``$XDG_CACHE_HOME/geoseg`` (``~/.cache/geoseg``), and without a usable one the function is compiled for this run only.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._compiled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the compiled function."""
        if self._compiled is None:
            with _COMPILING:
                self._compiled = self._compiled or _cached(self._function)
        try:
            return self._compiled(*args, **kwargs)
        except OSError:  # the cache folder vanished or is full; the function itself does no input or output
            self._compiled = _uncached(self._function)
            return self._compiled(*args, **kwargs)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """A function that kernels call; it is compiled as a part of them."""
    return cast(Callable[P, R], _NJIT(function, no_cpython_wrapper=True, no_cfunc_wrapper=True))


def _uncached(function: Callable[P, R]) -> Callable[P, R]:
    return cast(Callable[P, R], _NJIT(function, nogil=True))


def _cached(function: Callable[P, R]) -> Callable[P, R]:
    chosen = _CONFIG.CACHE_DIR
    try:
        folder = Path(chosen) if chosen else _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # it cannot be written, or there is no home folder
        return _uncached(function)
    try:
        _CONFIG.CACHE_DIR = str(folder)
        return cast(Callable[P, R], _NJIT(function, nogil=True, cache=True))
    finally:
        _CONFIG.CACHE_DIR = chosen


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "geoseg" / __version__
