"""Explicit vectors against NumPy and mpmath: arithmetic, exponentials, labels, memory."""

import mpmath
import numpy as np
import pytest
from numba import njit

from fastnc.kernels.cpu.processor import native_lanes
from fastnc.kernels.cpu.simd import (
    EXP_LIMIT,
    all_within,
    exp,
    exp_wide,
    max_members,
    sum_members,
    zeros,
)
from fastnc.kernels.cpu.simd_blocks import (
    address,
    both_products,
    label_entries,
    label_gaps,
    label_gaps_of_differences,
    load_like,
    load_members,
    store,
    store_members,
    sum_rows,
)


@njit
def _exponentials(x, narrow, wide):
    for i in range(0, x.size, 4):
        v = load_like(x, i, zeros(x, 1, 4))
        store(narrow, i, exp(v))
        store(wide, i, exp_wide(v))


def exponentials(x):
    narrow, wide = np.empty_like(x), np.empty_like(x)
    _exponentials(x, narrow, wide)
    return narrow, wide


@njit
def _round_trip(z, labels, gaps, entries, totals, largest, within, limit):
    like = zeros(z, 3, 4)
    members = load_members(z, 0, 4, like)
    label = load_like(labels, 0, like)
    g = label_gaps(members, label)
    store_members(gaps, 0, 4, g)
    store(totals, 0, sum_members(g))
    store(largest, 0, max_members(g))
    store_members(entries, 0, 4, label_entries(g, sum_members(g), label))
    within[0] = all_within(g, limit)


@njit
def _row_sums(x, out, lanes):
    store(out, 0, sum_rows(x, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_within_an_ulp(dtype):
    rng = np.random.default_rng(0)
    limit = EXP_LIMIT[dtype]
    x = np.concatenate([rng.uniform(-limit, limit, 1500), rng.uniform(-1, 1, 500)]).astype(dtype)
    mpmath.mp.dps = 40
    exact = [mpmath.exp(mpmath.mpf(float(v))) for v in x]
    for ours in exponentials(x):
        ulps = np.spacing(np.array([float(e) for e in exact]).astype(dtype))
        errors = [
            abs(mpmath.mpf(float(a)) - e) / mpmath.mpf(float(u))
            for a, e, u in zip(ours, exact, ulps, strict=True)
        ]
        assert max(errors) <= 1.0


@pytest.mark.parametrize(("dtype", "below"), [("float32", -95.0), ("float64", -730.0)])
def test_wide_exponentials_underflow_gradually_and_keep_nan(dtype, below):
    x = np.array([below, -np.inf, np.nan, -1e30, 0.0, -0.0, below - 5, 1.0], dtype)
    narrow, wide = exponentials(x)
    tiny = np.finfo(dtype).smallest_subnormal
    for i in (0, 6):
        # Two roundings of a subnormal number.
        assert wide[i] > 0.0 and abs(wide[i] - np.exp(np.float64(x[i]))) <= 2 * float(tiny)
    assert wide[1] == 0.0 and wide[3] == 0.0 and np.isnan(wide[2]) and np.isnan(narrow[2])
    assert wide[4] == wide[5] == 1.0 and wide[7] == pytest.approx(np.e, rel=3e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gaps_put_the_last_class_in_the_place_of_the_label_and_back(dtype):
    z = np.array([[1, 2, 4, 8], [16, 32, 64, 128], [256, 512, 1024, 2048]], dtype)
    labels = np.array([0, 1, 2, 1], dtype)
    gaps, entries = np.empty((2, 4), dtype), np.empty((3, 4), dtype)
    totals, largest, within = np.empty(4, dtype), np.empty(4, dtype), np.empty(1, np.bool_)
    _round_trip(
        z.ravel(), labels, gaps.ravel(), entries.ravel(), totals, largest, within, 1920.0
    )  # fmt: skip
    y = labels.astype(int)
    own = z[y, np.arange(4)]
    assert within[0]
    for i in range(4):
        order = [2 if k == y[i] else k for k in range(2)]
        np.testing.assert_array_equal(gaps[:, i], z[order, i] - own[i])
        assert totals[i] == gaps[:, i].sum() and largest[i] == gaps[:, i].max()
        expected = z[:, i] - own[i]
        expected[y[i]] = totals[i]
        np.testing.assert_array_equal(entries[:, i], expected)
    _round_trip(z.ravel(), labels, gaps.ravel(), entries.ravel(), totals, largest, within, 1919.0)
    assert not within[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_rows_by_the_butterfly(dtype):
    lanes = native_lanes(dtype)
    x = np.arange(lanes * lanes, dtype=dtype) ** 2
    out = np.empty(lanes, dtype)
    _row_sums(x, out, lanes)
    np.testing.assert_array_equal(out, x.reshape(lanes, lanes).sum(axis=1))


@njit
def _gaps_of_differences(differences, labels, gaps):
    members = load_members(differences, 0, 4, zeros(differences, 2, 4))
    label = load_like(labels, 0, members)
    store_members(gaps, 0, 4, label_gaps_of_differences(members, label))


@njit
def _both(factors, r, h, sums, total, stride):
    like = zeros(h, 3, 4)
    both = both_products(
        load_members(sums, 0, 4, like), load_members(factors, 0, 4, like), r, 1, stride,
        load_like(h, 0, like),
    )  # fmt: skip
    store_members(sums, 0, 4, both[:-1])
    # An address stands for the array from there on.
    store(address(total, 2), 0, both[-1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gaps_of_differences_to_the_last_class(dtype):
    rng = np.random.default_rng(2)
    labels = np.array([0, 1, 2, 1], dtype)
    z = np.rint(rng.standard_normal((3, 4)) * 64).astype(dtype) / 8
    gaps = np.full((2, 4), np.nan, dtype)
    _gaps_of_differences((z[:2] - z[2]).ravel(), labels, gaps.ravel())
    for lane, label in enumerate(labels.astype(int)):
        others = [2 if k == label else k for k in range(2)]
        assert gaps[:, lane].tolist() == [z[k, lane] - z[label, lane] for k in others]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_products_of_one_load(dtype):
    rng = np.random.default_rng(3)
    # Small integers, so that every product and sum is exact.
    factors, sums, r = (rng.integers(-9, 9, (3, n)).astype(dtype) for n in (4, 4, 6))
    h = rng.integers(-9, 9, 4).astype(dtype)
    out, total = sums.copy(), np.zeros(7, dtype)
    _both(factors.ravel(), r.ravel(), h, out.ravel(), total, 6)
    np.testing.assert_array_equal(out, sums + r[:, 1:5] * h)
    np.testing.assert_array_equal(total, [0, 0, *(factors * r[:, 1:5]).sum(0), 0])
