"""Numbers of threads: one for a BLAS inside our loops, one for Numba on small problems.

The kernels call a BLAS from inside parallel loops, where it must not start threads of its own. A
BLAS has one number of threads for the whole process; `serial_blas` sets it to 1 and restores it
afterwards, for every BLAS that threadpoolctl knows. Only one caller at a time is inside
`one_thread`: each uses all threads, and Numba's workqueue layer aborts on two loops at once.

Numba's threads belong to the process that started them. GNU OpenMP's do not survive a fork, nor
can it start others in the child: there, `forked()` is true, and kernels run on one thread.
"""

import os
import sys
import threading
from contextlib import ContextDecorator, contextmanager, nullcontext, suppress

import numba
import numpy.linalg  # noqa: F401  (loads NumPy's BLAS)
import scipy.linalg.cython_blas  # noqa: F401  (loads SciPy's)
from numba.np.ufunc import parallel
from threadpoolctl import ThreadpoolController


class _SerialBlas(ContextDecorator):
    """Every BLAS of the process uses one thread a call while any thread is inside this context.

    The order of a BLAS's sums depends on its number of threads: results that must have the same
    bits on any number of threads are computed inside. Also a decorator.
    """

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

    def start_anew(self):
        """In a forked child: the threads that were inside exist only in the parent."""
        if self._inside:
            self._set(self._before)
        self._lock, self._inside = threading.Lock(), 0

    def _set(self, numbers):
        for library, number in zip(self._libraries, numbers, strict=True):
            if library.num_threads != number:
                library.set_num_threads(number)


def _launch():
    """Start Numba's threads, with every OpenMP's state as it was.

    Starting them sets the number of threads and of nested levels of the OpenMP they use, which is
    torch's where torch is loaded: it turned `torch.set_num_threads(1)` into 2.
    """
    with suppress(ImportError):
        from numba.np.ufunc import omppool  # noqa: F401  (loads the library whose state is kept)
    libraries = [
        library.dynlib
        for library in ThreadpoolController().select(user_api="openmp").lib_controllers
    ]
    before = [(lib.omp_get_max_threads(), lib.omp_get_max_active_levels()) for lib in libraries]
    numba.get_num_threads()
    for lib, (threads, levels) in zip(libraries, before, strict=True):
        lib.omp_set_num_threads(threads)
        lib.omp_set_max_active_levels(levels)


_launch()
serial_blas = _SerialBlas()
_turn = threading.RLock()
_forked = False


def forked():
    """Whether this process was forked from one with OpenMP threads, which it lacks."""
    return _forked


def _in_child():
    global _turn, _forked
    _turn = threading.RLock()
    serial_blas.start_anew()
    # Torch's threads are OpenMP's too, and would hang as well.
    _forked = _forked or parallel._is_initialized or "torch" in sys.modules


os.register_at_fork(after_in_child=_in_child)


def _threads_given():
    """OMP_NUM_THREADS unless NUMBA_NUM_THREADS is set: torchrun gives each rank one thread."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if "NUMBA_NUM_THREADS" in os.environ or not first.isdigit() or int(first) < 1:
        return numba.config.NUMBA_NUM_THREADS
    return min(int(first), numba.config.NUMBA_NUM_THREADS)


THREADS_GIVEN = _threads_given()


def n_threads():
    """How many threads a parallel kernel uses if the calling thread starts it now."""
    if _forked:
        return 1
    return min(numba.get_num_threads(), THREADS_GIVEN)


@contextmanager
def at_most(n):
    """No more than `n` threads for the parallel kernels that are called in here."""
    before = numba.get_num_threads()
    if n < before:
        numba.set_num_threads(n)
    try:
        yield
    finally:
        if n < before:
            numba.set_num_threads(before)


@contextmanager
def one_thread():
    """`serial_blas`, and one caller at a time."""
    with _turn, serial_blas:
        yield


def few_threads(small, blas=True):
    """One thread for Numba, and with `blas` for the BLAS, while a `small` problem is worked on.

    Sharing microseconds of work means waiting for a second thread: on a busy machine a run of one
    second took thirty. The bits of the kernels do not depend on it.
    """
    return _few_threads(blas) if small else nullcontext()


@contextmanager
def _few_threads(blas):
    with at_most(1), serial_blas if blas else nullcontext():
        yield
