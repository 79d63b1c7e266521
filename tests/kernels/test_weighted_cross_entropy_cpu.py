"""The CPU kernels of the torch loss against NumPy in float64, each output poisoned beforehand."""

import numba
import numpy as np
import pytest
from kernel_problems import weighted as run

from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
from fastnc.kernels.cpu.plan import Plan
from fastnc.kernels.cpu.weighted_cross_entropy import examine

SHAPES = {
    "aligned": (8, 16, 256),
    "prime": (7, 13, 131),
    "smaller than a block": (3, 5, 4),
    "two classes, one feature, one sample": (2, 1, 1),
    "one class": (1, 3, 5),
    "one part of many chunks, padded": (10, 20, 700),
    "several parts, padded": (10, 20, 6000),
    "BLAS": (90, 211, 333),
}
MANY = {"several ranges": (2001, 70, 131), "one block a range": (600, 110, 300)}
DIVIDED = Plan("classes", "tiles", parts=4, chunk=112, block=150)
BY_BLAS = DIVIDED._replace(products="blas")
# One rounding for each term of a sum, of the largest term.
TOLERANCE = {"float32": 3e-5, "float64": 3e-13}


def arguments(K, d, N, dtype, options=True, seed=0):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((K, d)) / np.sqrt(d)
    H = rng.standard_normal((N, d))
    # Most classes of a large K, and class 0 of a small one, have no sample.
    y = rng.integers(min(1, K - 1), K, N)
    bias = rng.standard_normal(K if options else 0)
    weight = rng.uniform(0.5, 2.0, K if options else 0)
    scale = rng.uniform(0.1, 1.0, N if options else 1)
    floats = (np.ascontiguousarray(x, dtype) for x in (W, H, bias, weight, scale))
    W, H, bias, weight, scale = floats
    return W, H, y, bias, weight, 0.2 if options else 0.0, scale


def plainly(W, H, y, bias, weight, smoothing, scale):
    """The textbook's softmax, which is exact enough while no margin is large."""
    W, H, bias, weight, scale = (x.astype(np.float64) for x in (W, H, bias, weight, scale))
    N, K = len(H), len(W)
    z = H @ W.T + (bias if len(bias) else 0.0)
    log_p = z - z.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    mass = np.full((N, K), smoothing / K)
    mass[np.arange(N), y] += 1.0 - smoothing
    if len(weight):
        mass *= weight
    losses = -(mass * log_p).sum(axis=1)
    r = (np.exp(log_p) * mass.sum(axis=1, keepdims=True) - mass) * scale[:, None]
    return np.array([losses.sum()]), losses, r.T @ H, r @ W, r.sum(axis=0)


def close(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        # A class alone has neither a loss nor a gradient: what is left there is rounding.
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape, dtype, options):
    given = arguments(*SHAPES[shape], dtype, options)
    close(run(*given), plainly(*given), TOLERANCE[dtype])


@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", MANY)
def test_classes_in_ranges(shape, dtype, options, monkeypatch):
    given = arguments(*MANY[shape], dtype, options)
    for planned in (DIVIDED, BY_BLAS):
        monkeypatch.setattr(cross_entropy_cpu, "plan", lambda *_, planned=planned: planned)
        close(run(*given), plainly(*given), TOLERANCE[dtype])


def test_both_arrangements_agree_in_the_tail(monkeypatch):
    """At margins of 300 and where every sample is wrong by as much: no digit is lost by either."""
    for sign in (1.0, -1.0):
        W, H, y, *rest = arguments(700, 40, 50, "float64")
        H = sign * 300.0 * W[y] / (W[y] ** 2).sum(axis=1, keepdims=True)
        rest[1][:] = 1.0
        rest[2] = 0.0
        parts = run(W, H, y, *rest)
        monkeypatch.setattr(cross_entropy_cpu, "plan", lambda *_: DIVIDED)
        ranges = run(W, H, y, *rest)
        monkeypatch.undo()
        assert (parts[0] < 1e-20) if sign > 0 else (parts[0] > 1000.0)
        for a, b in zip(parts, ranges, strict=True):
            # Logits near 300 are 6e-14 apart, and what they err by is exponentiated.
            assert np.abs(a - b).max() <= 1e-11 * np.abs(b).max()


@pytest.mark.parametrize("many", [False, True])
def test_only_what_is_wanted_is_written(many, monkeypatch):
    if many:
        monkeypatch.setattr(cross_entropy_cpu, "plan", lambda *_: DIVIDED)
    given = arguments(10, 20, 700, "float64")
    everything = run(*given)
    for i in range(4):
        wanted = [j == i for j in range(4)]
        some = run(*given, wanted)
        assert np.array_equal(some[0], everything[0])
        for j in range(4):
            assert (
                np.array_equal(some[1 + j], everything[1 + j])
                if wanted[j]
                else not len(some[1 + j])
            )


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("shape", [(10, 20, 6000), (90, 211, 333)])
def test_the_bits_do_not_depend_on_the_threads(shape, many, monkeypatch):
    if many:
        monkeypatch.setattr(cross_entropy_cpu, "plan", lambda *_: DIVIDED)
    given = arguments(*shape, "float32")
    first = run(*given)
    before = numba.get_num_threads()
    try:
        for threads in range(1, min(4, numba.config.NUMBA_NUM_THREADS) + 1):
            numba.set_num_threads(threads)
            for a, b in zip(run(*given), first, strict=True):
                assert np.array_equal(a, b)
    finally:
        numba.set_num_threads(before)


def test_rows_of_the_residual_sum_to_zero():
    """`sum_j grad_b_j = sum_i scale_i sum_j r_ij`: rounding alone is left."""
    given = arguments(90, 211, 333, "float64")
    grad_bias = run(*given)[4]
    assert np.abs(grad_bias).max() > 1.0
    assert abs(grad_bias.sum()) < 1e-12


def test_labels_are_examined():
    y = np.array([0, 3, -100, 2, -1, 4, -100])
    assert examine(y, 5, -100) == (2, 4)
    assert examine(y, 4, -1) == (1, 2)
    assert examine(y[:2], 4, -100) == (0, -1)
    assert examine(y[:0], 4, -100) == (0, -1)
    # A class may be ignored too.
    assert examine(y[:2], 4, 3) == (1, -1)
