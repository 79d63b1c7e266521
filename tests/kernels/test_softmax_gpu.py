"""The exponential and the logarithm that the Triton kernels share, against mpmath."""

import mpmath
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interpreted import DEVICE, tensors

from fastnc.kernels.gpu import softmax as softmax_gpu


@triton.jit
def each(x, out, size, EXP: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    value = tl.load(x + lanes, mask=lanes < size, other=0.0)
    if EXP:
        tl.store(out + lanes, softmax_gpu.exp(value), mask=lanes < size)
    else:
        tl.store(out + lanes, softmax_gpu.log1p(value), mask=lanes < size)


def run(x, exponential):
    (given,) = tensors(x)
    out = torch.full_like(given, float("nan"))
    each[(1,)](given, out, len(x), EXP=exponential, BLOCK=2048)
    return out.cpu().numpy()


# Below -708 (float64) and -87 (float32) a result is no normal number: zero there is allowed.
@pytest.mark.parametrize(("dtype", "lowest"), [(np.float32, -87.0), (np.float64, -708.0)])
def test_the_exponential_has_all_its_digits_where_it_is_a_normal_number(dtype, lowest):
    x = np.concatenate([np.linspace(lowest, 0.0, 1900), -np.logspace(-12, 0, 100)]).astype(dtype)
    exact = np.array([float(mpmath.exp(mpmath.mpf(float(v)))) for v in x])
    error = np.abs(run(x, True).astype(np.float64) / exact - 1.0)
    # Two units in the last place, and half a unit for storing it.
    assert error.max() < 2.5 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exponential_of_the_unusual(dtype):
    got = run(np.array([0.0, -0.0, -np.inf, -1e6, -2000.0, np.nan], dtype), True)
    np.testing.assert_array_equal(got, np.array([1.0, 1.0, 0.0, 0.0, 0.0, np.nan], dtype))


@pytest.mark.parametrize(("dtype", "smallest"), [(np.float32, -30.0), (np.float64, -300.0)])
def test_the_logarithm_near_one_is_relatively_exact(dtype, smallest):
    x = np.concatenate([np.logspace(smallest, 6, 1500), np.linspace(0.5, 2.0, 400)]).astype(dtype)
    exact = np.array([float(mpmath.log1p(mpmath.mpf(float(v)))) for v in x])
    error = np.abs(run(x, False).astype(np.float64) / exact - 1.0)
    # Five roundings: the quotient, its square, the series' last step, two products.
    assert error.max() < 5 * np.finfo(dtype).eps
    assert run(np.zeros(1, dtype), False)[0] == 0.0


def test_the_arithmetic_is_that_of_the_device():
    if DEVICE != "cpu":
        pytest.skip("the device has its own")
    from interpreted import product

    rng = np.random.default_rng(0)
    a = rng.standard_normal((16, 64)).astype(np.float32)
    b = rng.standard_normal((64, 16)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    scale = np.abs(a).astype(np.float64) @ np.abs(b)
    error = (np.abs(product(a, b, "bf16x6") - exact) / scale).max()
    # 24 bits of each factor; sums add some of float32's.
    assert error < 2**-20
