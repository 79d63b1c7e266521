"""Who uses how many threads: one for a BLAS inside our loops, one for Numba on small problems.

The kernels call a BLAS from inside parallel loops, where it must not start threads of its own. A
BLAS has one number of threads for the whole process; `serial_blas` sets it to 1 and puts back what
it found, for every BLAS that threadpoolctl knows. Callers of `one_thread` also take turns: each
uses all threads as it is, and Numba's workqueue layer ends a process that starts two loops at once.
"""

import threading
from contextlib import contextmanager, nullcontext

import numba
import numpy.linalg  # noqa: F401  (loads NumPy's BLAS)
import scipy.linalg.cython_blas  # noqa: F401  (loads SciPy's)
from threadpoolctl import ThreadpoolController


class _SerialBlas:
    """Every BLAS of the process uses one thread a call while anybody is in here."""

    def __init__(self):
        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._lock, self._inside, self._before = threading.Lock(), 0, []

    def __enter__(self):
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [library.num_threads for library in self._libraries]
                self._set([1] * len(self._libraries))

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(self._before)

    def _set(self, numbers):
        for library, number in zip(self._libraries, numbers, strict=True):
            if library.num_threads != number:
                library.set_num_threads(number)


serial_blas = _SerialBlas()
_turn = threading.RLock()


@contextmanager
def one_thread():
    """`serial_blas`, and one caller at a time."""
    with _turn, serial_blas:
        yield


@contextmanager
def few_threads(small, blas=True):
    """One thread for Numba, and with `blas` for the BLAS, while a `small` problem is worked on.

    To share what takes microseconds, a library waits for a second thread: on a busy machine that
    was seen to make a run of one second take thirty. The bits of the kernels do not depend on it.
    """
    before = numba.get_num_threads()
    if small:
        numba.set_num_threads(1)
    try:
        with serial_blas if small and blas else nullcontext():
            yield
    finally:
        numba.set_num_threads(before)
