"""Functions whose results depend on nothing but their arguments: no thread, no error state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


def quiet(function: Callable[P, T]) -> Callable[P, T]:
    """`function` without NumPy's floating-point warnings, whatever `np.errstate` surrounds it.

    What underflows is meant to, and what is not finite is answered by a sentence.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        with np.errstate(all="ignore"):
            return function(*args, **options)

    return run


def serial(function: Callable[P, T]) -> Callable[P, T]:
    """`function` under one BLAS thread, and `quiet`.

    A BLAS splits a sum by its number of threads, which another Python thread may change meanwhile.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        from fastnc.kernels.cpu.threads import serial_blas

        with serial_blas, np.errstate(all="ignore"):
            return function(*args, **options)

    return run
