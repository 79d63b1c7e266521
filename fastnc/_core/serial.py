"""Functions whose bits depend on nothing but their arguments: one BLAS thread while they run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def serial(function: Callable[P, T]) -> Callable[P, T]:
    """`function` under one BLAS thread.

    A BLAS splits a sum by its number of threads, which another Python thread may change meanwhile.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        from fastnc.kernels.cpu.threads import serial_blas

        with serial_blas:
            return function(*args, **options)

    return run
