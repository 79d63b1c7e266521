"""The loss by one C call against the launcher it shares its kernels with, from a cache too."""

import subprocess
import sys

import numpy as np
import pytest

from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
from fastnc.kernels.cpu.cross_entropy import numbers
from fastnc.kernels.cpu.plan import Plan
from fastnc.kernels.cpu.weighted_cross_entropy import loss_and_grads
from fastnc.kernels.cpu.weighted_loss import (
    BIAS,
    DONE,
    GRAD_BIAS,
    GRAD_H,
    GRAD_W,
    LOSSES,
    MEAN,
    SCALE,
    SOME_IGNORED,
    WEIGHT,
    loss_call,
)

SHAPES = {
    "whole vectors": (8, 16, 50),
    "padded": (5, 21, 50),
    "several chunks, padded": (10, 20, 600),
    "no sample": (4, 8, 0),
}
ONE_PART = Plan("samples", "tiles", parts=1, chunk=64, block=512)


def arguments(K, d, N, dtype, options):
    rng = np.random.default_rng(0)
    W, H = rng.standard_normal((K, d)), rng.standard_normal((N, d))
    y = rng.integers(0, K, N)
    bias, weight = rng.standard_normal(K), rng.uniform(0.5, 2.0, K)
    scale = rng.uniform(0.1, 1.0, N)
    n = K if options else 0
    W, H, bias, weight, scale = (
        np.ascontiguousarray(x, dtype) for x in (W, H, bias[:n], weight[:n], scale)
    )
    return W, H, y, bias, weight, 0.2 if options else 0.0, scale


def call(W, H, y, bias, weight, smoothing, scale, flags, ignore_index=-100):
    """What the call returns, and its poisoned outputs: loss, grad_W, grad_H, grad_bias."""
    (K, d), N = W.shape, len(H)
    sizes = N if flags & LOSSES else (), (K, d), (N, d), K
    outs = [np.full(size, np.nan, W.dtype) for size in sizes]
    held = np.array(numbers(ONE_PART, W.dtype), np.int64)
    flags |= (BIAS if len(bias) else 0) | (WEIGHT if len(weight) else 0)
    arrays = W, H, y, bias, weight, scale, *outs
    found = loss_call(W.dtype)(
        *(a.ctypes.data for a in arrays), held.ctypes.data, K, d, N, flags, ignore_index, smoothing,
    )  # fmt: skip
    return found, outs


@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_are_the_launchers(shape, dtype, options, monkeypatch):
    monkeypatch.setattr(cross_entropy_cpu, "plan", lambda *_: ONE_PART)
    K, d, N = SHAPES[shape]
    given = arguments(K, d, N, dtype, options)
    W, H, y, _, weight, *_ = given
    everything = GRAD_H | GRAD_W | GRAD_BIAS
    total, losses = np.empty(1), np.empty(N, dtype)
    grads = np.empty_like(W), np.empty_like(H), np.empty(K, dtype)
    loss_and_grads(*given, total, losses, *grads)
    found, outs = call(*given, everything | LOSSES | SCALE)
    assert found == DONE
    for a, b in zip(outs, (losses, *grads), strict=True):
        assert np.array_equal(a, b)
    found, outs = call(*given, everything)
    loss_and_grads(*given[:-1], np.ones(1, W.dtype), total, losses, *grads)
    assert found == DONE
    for a, b in zip(outs[1:], grads, strict=True):
        assert np.array_equal(a, b)
    # Up to 64 parts' sums in float64, by NumPy in another order, and one rounding to the dtype.
    rounding = 64 * np.finfo(np.float64).eps + np.finfo(dtype).eps
    np.testing.assert_allclose(outs[0], total[0], rtol=rounding)
    divisor = weight[y].sum(dtype=np.float64) if options else N
    _, outs = call(*given, MEAN)
    with np.errstate(invalid="ignore"):
        # The sum of N weights too is in another order.
        rounding += N * np.finfo(np.float64).eps
        np.testing.assert_allclose(outs[0], total[0] / np.float64(divisor), rtol=rounding)
    assert all(np.isnan(out).all() for out in outs[1:])


def test_labels_are_examined_before_anything_is_done():
    given = list(arguments(8, 16, 50, "float32", False))
    given[2][7] = 8
    found, outs = call(*given, GRAD_W)
    assert found == 7 and all(np.isnan(out).all() for out in outs)
    found, outs = call(*given, GRAD_W, ignore_index=8)
    assert found == SOME_IGNORED and all(np.isnan(out).all() for out in outs)
    given[2][9] = -1
    assert call(*given, GRAD_W, ignore_index=8)[0] == 9


CODE = """
import numpy as np
from fastnc.kernels.cpu.cross_entropy import numbers
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.weighted_loss import DONE, loss_call
x, loss = np.ones(3200, np.float32), np.zeros(1, np.float32)
y, at = np.zeros(200, np.int64), x.ctypes.data
held = np.array(numbers(plan(8, 16, 200, 4), x.dtype), np.int64)
call = loss_call(x.dtype)
arguments = at, at, y.ctypes.data, 0, 0, 0, loss.ctypes.data, 0, 0, 0, held.ctypes.data
print(call(*arguments, 8, 16, 200, 0, -100, 0.0), loss[0], call.compiled.cache_hits)
"""


def test_from_the_cache_in_a_process_that_has_compiled_nothing():
    loss_call(np.dtype("float32"))
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    found, loss, hits = done.stdout.split()
    assert int(found) == DONE and int(hits) == 1
    # 200 log 8.
    assert abs(float(loss) - 200 * np.log(8)) < 1e-3
