"""Both sums of a step at once: every number of classes, against the two products by tiles."""

import ctypes

import numpy as np
import pytest

from fastnc.kernels.cpu.addresses import BOTH, PRODUCT, addresses
from fastnc.kernels.cpu.few_classes import MOST_CLASSES
from fastnc.kernels.cpu.processor import native_lanes
from fastnc.kernels.cpu.tile import BLOCK


def call(kernel, dtype, *arguments):
    """One of `addresses`: arrays are pointers, floats of the dtype, and all others integers."""
    real = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    kinds = {np.ndarray: ctypes.c_void_p, float: real, int: ctypes.c_int64}
    kernel = ctypes.CFUNCTYPE(None, *[kinds[type(a)] for a in arguments])(
        addresses(False, np.dtype(dtype), True)[kernel]
    )
    kernel(*[a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", range(1, MOST_CLASSES + 1))
def test_the_bits_of_the_two_products(n_classes, dtype):
    lanes = native_lanes(dtype)
    D, alpha, rng = 3 * lanes, -0.3, np.random.default_rng(n_classes)
    for rows in (1, lanes - 1, 2 * lanes + 1, 64):
        # Rows of Z have room for whole vectors of samples, as those of logits.
        ld = (rows + lanes - 1) // lanes * lanes + lanes
        W, Z = rng.standard_normal((n_classes, D)), rng.standard_normal((n_classes, ld))
        H, sums = rng.standard_normal((rows, D)), rng.standard_normal((n_classes, D))
        W, Z, H, sums = (a.astype(dtype) for a in (W, Z, H, sums))
        new_H, new_sums = H.copy(), sums.copy()
        call(BOTH, dtype, new_sums, new_H, W, D, 3, n_classes, Z, ld, rows, alpha, H, 5)
        call(
            PRODUCT, dtype, sums, D, n_classes, 3, Z, ld, 1, H, D, rows, BLOCK, 1.0, 1, H, 0,
        )  # fmt: skip
        call(
            PRODUCT, dtype, H, D, rows, 3, Z, 1, ld, W, D, n_classes, BLOCK, alpha, 1, H, 0,
        )  # fmt: skip
        np.testing.assert_array_equal(new_sums, sums)
        np.testing.assert_array_equal(new_H, H)
