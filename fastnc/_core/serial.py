"""Functions whose results depend on their arguments alone, not on threads or error states."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


def quiet(function: Callable[P, T]) -> Callable[P, T]:
    """`function` without NumPy's floating-point warnings, whatever `np.errstate` surrounds it.

    Underflow is intended, and what is not finite raises an error of its own.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        with np.errstate(all="ignore"):
            return function(*args, **options)

    return run


def serial(function: Callable[P, T]) -> Callable[P, T]:
    """`function` under one BLAS thread, and `quiet`.

    The order of a BLAS's sums depends on its number of threads, which other threads may change.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        from fastnc.kernels.cpu.threads import serial_blas

        with serial_blas, np.errstate(all="ignore"):
            return function(*args, **options)

    return run
