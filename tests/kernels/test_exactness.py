"""Every digit at every margin: all objective kernels against 50-digit arithmetic.

The logits are exact in the dtype: W = I, and H holds multiples of 1/4 of one sign, so that no
entry of a gradient is a difference. What is left is the function's own error. Compared is every
entry whose true value is a normal number of the dtype.
"""

import functools

import numpy as np
import oracles
import pytest
from kernel_problems import evaluate

MARGINS = {
    "float64": [-200.0, -61.0, -59.75, -37.5, -16.75, -1.0, -0.25, 0.25, 1.0, 16.75, 37.5, 60.0,
                128.25, 300.0, 512.0, 690.5, 700.0],
    "float32": [-80.0, -61.0, -59.75, -16.75, -1.0, -0.25, 0.25, 1.0, 8.0, 16.75, 37.5, 60.0,
                79.5, 85.0],
}  # fmt: skip
BOUND = {"float64": 1e-14, "float32": 1e-6}
K = 5


def sample(margin, dtype):
    """A sample of class 0 at that margin; the other gaps are lower by 1/4, 1/2, 3/4."""
    return np.array([[max(margin, 0.0), *(max(-margin, 0.0) - 0.25 * np.arange(4))]], dtype) + 1


@functools.cache
def told(margins, dtype):
    H = np.concatenate([sample(m, dtype) for m in margins])
    y = np.zeros(len(H), np.int64)
    return H, y, oracles.cross_entropy(np.eye(K, dtype=dtype), H, y)


@pytest.mark.parametrize("dtype", BOUND)
def test_one_sample_at_each_margin(arrangement, dtype):
    for margin in MARGINS[dtype]:
        H, y, exact = told((margin,), dtype)
        found = evaluate(np.eye(K, dtype=dtype), H, y)
        value, grad_W, grad_H = found["loss_and_grads"]
        assert found["loss"][0] == value
        for got, name in ((value, "loss"), (grad_W, "grad_W"), (grad_H, "grad_H")):
            error = oracles.worst_relative_error(got, exact[name], dtype)
            assert error < BOUND[dtype], (margin, name)


@pytest.mark.parametrize("dtype", BOUND)
def test_all_margins_side_by_side(arrangement, dtype):
    """Neighbours in a vector, a chunk and a part do not disturb each other.

    The class sums add up to 17 terms of one sign, each addition within one rounding.
    """
    H, y, exact = told(tuple(MARGINS[dtype]), dtype)
    value, grad_W, grad_H = evaluate(np.eye(K, dtype=dtype), H, y)["loss_and_grads"]
    bound = BOUND[dtype] + len(H) * np.finfo(dtype).eps
    assert oracles.worst_relative_error(value, exact["loss"], dtype) < bound
    assert oracles.worst_relative_error(grad_W, exact["grad_W"], dtype) < bound
    assert oracles.worst_relative_error(grad_H, exact["grad_H"], dtype) < BOUND[dtype]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("margin", [-80.0, -1.0, 0.25, 40.0, 85.0, 700.0, 1e3, 1e5])
def test_log_domain_far_past_the_smallest_number(arrangement, dtype, margin):
    H, y, exact = told((margin,), dtype)
    log_value, by_W, by_H = evaluate(np.eye(K, dtype=dtype), H, y)["log_loss_and_grads"]
    # A loss near 1 has a logarithm near 0, which a rounding of the loss moves by as much.
    error = abs(float(log_value[0] - exact["log_loss"]))
    assert error < BOUND[dtype] * max(1.0, abs(float(exact["log_loss"])))
    for got, name in ((by_W, "grad_W"), (by_H, "grad_H")):
        ratio = exact[name] / exact["loss"]
        assert oracles.worst_relative_error(got, ratio, dtype) < BOUND[dtype], name


@pytest.mark.parametrize("dtype", BOUND)
def test_log_domain_where_margins_differ(arrangement, dtype):
    """The shares of samples fall from 1 to the last normal number, over several shifts.

    A chunk with a larger shift comes last: what was summed before it is scaled down.
    """
    depth = 690.0 if dtype == "float64" else 80.0
    margins = 1e3 + np.concatenate([np.linspace(1, depth, 40).round(), [depth, 0.5]])
    H, y, exact = told(tuple(margins), dtype)
    log_value, by_W, by_H = evaluate(np.eye(K, dtype=dtype), H, y)["log_loss_and_grads"]
    assert oracles.worst_relative_error(log_value, exact["log_loss"], dtype) < BOUND[dtype]
    rounds = len(H) * np.finfo(dtype).eps
    ratio_W, ratio_H = exact["grad_W"] / exact["loss"], exact["grad_H"] / exact["loss"]
    assert oracles.worst_relative_error(by_W, ratio_W, dtype) < BOUND[dtype] + rounds
    assert oracles.worst_relative_error(by_H, ratio_H, dtype) < BOUND[dtype]
