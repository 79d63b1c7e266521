"""Arrays that start on a cache line: a vector that straddles two costs a second access.

NumPy aligns to 16 bytes and Numba to 32. Where a vector is a whole line, every load and store of
every second array would straddle two lines; a store that straddles two pages takes a hundred
cycles.
"""

import numpy as np

from fastnc.kernels.cpu.options import INNER, njit

LINE = 64


def aligned(shape, dtype):
    """An uninitialised array."""
    size, itemsize = int(np.prod(shape)), np.dtype(dtype).itemsize
    spare = np.empty(size + LINE // itemsize, dtype)
    first = -spare.ctypes.data % LINE // itemsize
    return spare[first : first + size].reshape(shape)


def aligned_zeros(shape, dtype):
    """Zeros of any shape."""
    out = aligned(shape, dtype)
    out[...] = 0
    return out


@njit(**INNER)
def aligned_numbers(n, like):
    """An uninitialised array of n numbers of the dtype of `like`."""
    spare = np.empty(n + LINE // like.itemsize, like.dtype)
    first = -np.int64(spare.ctypes.data) % LINE // like.itemsize
    return spare[first : first + n]


@njit(**INNER)
def aligned_rows(rows, columns, like):
    """An uninitialised matrix of the dtype of `like`; rows of whole lines are aligned."""
    return aligned_numbers(rows * columns, like).reshape((rows, columns))


@njit(**INNER)
def aligned_doubles(n):
    """n zeros in float64."""
    out = aligned_numbers(n, np.empty(0))
    out[:] = 0.0
    return out
