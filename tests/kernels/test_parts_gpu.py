"""Numbers taken apart for the tensor cores: what the parts keep, and where they lie."""

import numpy as np
import pytest
import torch
from interpreted import tensors

from fastnc.kernels.gpu import parts as parts_gpu


def matrix(n, m, seed=0):
    """Rows of very different size, some entries far below their row's largest; one row of zeros."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, m)) * 10.0 ** rng.integers(-9, 9, (n, 1))
    X[0] *= 10.0 ** rng.integers(-12, 1, m)
    X[-1] = 0.0
    return X.astype(np.float32)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 64), (17, 130)])
def test_scaled_halves_keep_22_bits_of_a_rows_largest(n, m):
    X = matrix(n, m)
    found = parts_gpu.planes(*tensors(X), 2, 0)
    assert found.width % parts_gpu.WIDTH == 0 and found.half.shape == (2, n, found.width)
    total = found.half.double().cpu().numpy().sum(0) * found.scales.double().cpu().numpy()[:, None]
    # Two numbers of 11 bits, rounded: the rest is below half a unit of the 22nd.
    bound = 2.0**-22 * np.abs(X).max(axis=1, keepdims=True)
    assert np.all(np.abs(total[:, :m] - X) <= bound)
    assert not total[:, m:].any()
    # A power of two: nothing is lost by it.
    fractions, _ = np.frexp(found.scales.double().cpu().numpy())
    assert np.all(fractions == 0.5)


@pytest.mark.parametrize(("parts", "bits"), [(1, 8), (2, 16), (3, 24)])
def test_brain_floats_keep_8_bits_a_part_of_every_entry(parts, bits):
    X = matrix(17, 70)
    found = parts_gpu.planes(*tensors(X), 0, parts)
    total = found.brain.double().cpu().numpy().sum(0)
    assert np.all(np.abs(total[:, :70] - X) <= 2.0**-bits * np.abs(X))
    assert not total[:, 70:].any()


def test_float64_is_left_as_it_is():
    (X,) = tensors(matrix(3, 5).astype(np.float64))
    found = parts_gpu.planes(X, 2, 2)
    assert found.half is X and found.brain is X and found.width == 5


def test_what_is_not_finite_stays_so():
    X = matrix(4, 8)
    X[1, 2], X[2, 3] = np.nan, np.inf
    found = parts_gpu.planes(*tensors(X), 2, 2)
    bad = ~torch.isfinite(found.brain.float().sum(0)).cpu().numpy()[:, :8]
    np.testing.assert_array_equal(bad, ~np.isfinite(X))
    scaled = found.half.float().sum(0) * found.scales[:, None]
    assert not torch.isfinite(scaled[1:3].sum(1)).any() and torch.isfinite(scaled[3]).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800001])
def test_no_pattern_of_nan_becomes_a_number(bits):
    """0x7FFFFFFF is what CUDA's arithmetic makes; a carry into its sign would leave -0."""
    X = np.ones((3, 64), np.float32)
    X[1, 5] = np.array(bits, np.uint32).view(np.float32)
    found = parts_gpu.planes(*tensors(X), 2, 3)
    for planes in (found.half, found.brain):
        assert torch.isnan(planes.float().sum(0)).nonzero().tolist() == [[1, 5]]
