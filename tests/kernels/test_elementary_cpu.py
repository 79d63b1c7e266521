"""`exp` and `log1p` against 50-digit arithmetic, and at the ends of their range."""

import mpmath
import numpy as np
import pytest
from numba import njit

from fastnc.kernels.cpu import elementary as elementary_cpu


@njit(error_model="numpy")
def _exp(x, out):
    for i in range(len(x)):
        out[i] = elementary_cpu.exp(x[i])


@njit(error_model="numpy")
def _log1p(x, out):
    for i in range(len(x)):
        out[i] = elementary_cpu.log1p(x[i])


def apply(function, x):
    out = np.full_like(x, np.nan)
    function(x, out)
    return out


def worst_ulp(function, exact, x):
    """The largest error in units of the last place of the result."""
    found = apply(function, x)
    errors = []
    with mpmath.workdps(50):
        for value, argument in zip(found, x, strict=True):
            true = exact(mpmath.mpf(float(argument)))
            unit = float(np.spacing(abs(value)))
            errors.append(float(abs(mpmath.mpf(float(value)) - true)) / unit)
    return max(errors)


@pytest.mark.parametrize(("dtype", "least"), [("float64", -708.0), ("float32", -87.0)])
def test_exp_is_within_an_ulp(dtype, least):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(least, 60.0, 1500), rng.uniform(-1.0, 1.0, 500), [0.0, 60.0]])
    # Half a unit is the rounding of any result; the rest is the polynomial's and its argument's.
    assert worst_ulp(_exp, mpmath.exp, x.astype(dtype)) < 1.0


@pytest.mark.parametrize(("dtype", "least"), [("float64", 1e-300), ("float32", 1e-37)])
def test_log1p_is_within_an_ulp(dtype, least):
    rng = np.random.default_rng(1)
    powers = np.exp(rng.uniform(np.log(least), np.log(1e30), 1500))
    x = np.concatenate([powers, rng.uniform(0.0, 3.0, 500), [1.0, np.sqrt(2) - 1]]).astype(dtype)
    assert worst_ulp(_log1p, mpmath.log1p, x) < 1.0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ends_of_the_range(dtype):
    tiny = float(np.finfo(dtype).tiny)
    x = np.array([0.0, -np.inf, 2 * np.log(tiny), np.nan], dtype)
    assert apply(_exp, x)[:3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(apply(_exp, x)[3])
    y = np.array([0.0, tiny, np.nan], dtype)
    assert apply(_log1p, y)[:2].tolist() == y[:2].tolist()
    assert np.isnan(apply(_log1p, y)[2])
