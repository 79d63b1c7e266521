"""Arrays that start on a cache line: a vector that straddles two costs a second access.

NumPy aligns to 16 bytes and Numba to 32. On a processor with vectors of a whole line every second
array would be straddled by each of its loads and stores; a store that straddles two pages waits
for a hundred cycles.
"""

import numpy as np

from fastnc.kernels.cpu.options import INNER, njit

LINE = 64


def aligned(size, dtype):
    """Room for `size` numbers."""
    itemsize = np.dtype(dtype).itemsize
    spare = np.empty(size + LINE // itemsize, dtype)
    first = -spare.ctypes.data % LINE // itemsize
    return spare[first : first + size]


def aligned_zeros(shape, dtype):
    """Zeros of any shape."""
    out = aligned(int(np.prod(shape)), dtype).reshape(shape)
    out[...] = 0
    return out


@njit(**INNER)
def aligned_numbers(n, like):
    """Room for n numbers of the dtype of `like`."""
    spare = np.empty(n + LINE // like.itemsize, like.dtype)
    first = -np.int64(spare.ctypes.data) % LINE // like.itemsize
    return spare[first : first + n]


@njit(**INNER)
def aligned_rows(rows, columns, like):
    """Room for a matrix of the dtype of `like`; its rows are aligned if they are whole lines."""
    return aligned_numbers(rows * columns, like).reshape((rows, columns))


@njit(**INNER)
def aligned_doubles(n):
    """n zeros in float64."""
    out = aligned_numbers(n, np.empty(0))
    out[:] = 0.0
    return out
