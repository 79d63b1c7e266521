"""The cross-entropy kernels against the reference: every arrangement, shape, dtype and label."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastnc import reference
from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
from fastnc.kernels.cpu import hessian as hessian_cpu
from fastnc.kernels.cpu import threads as threads_cpu
from fastnc.kernels.cpu.plan import StepPlan, plan, step_plan

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from suite.cases import CASES  # noqa: E402

# What `step_plan` would choose for a small problem, and what it chooses for large ones, made small:
# products by register tiles of W or a sweep over its strips, logits from W or its panels; one part
# and several (the last shorter than a chunk, or empty).
ARRANGEMENTS = {
    "chosen": None,
    "tiles": StepPlan(sweep=False, panels=False, chunk=16, parts=3),
    "tiles, one part": StepPlan(sweep=False, panels=False, chunk=32, parts=1),
    "tiles and panels": StepPlan(sweep=False, panels=True, chunk=32, parts=1),
    "sweep": StepPlan(sweep=True, panels=False, chunk=32, parts=1),
    "sweep and panels": StepPlan(sweep=True, panels=True, chunk=16, parts=3),
}

# K, d, N: tiles are 2, 5 or 6 classes, or 2 or 3 vectors of 4 or 8 of them; 2, 4 or 6 samples; 1 or
# 2 vectors of features. Samples go by in groups of 16.
SHAPES = {
    "aligned": (12, 32, 96),
    "primes": (7, 13, 101),
    "smaller than a tile": (3, 2, 5),
    "two classes": (2, 3, 40),
    "one class beyond a tile": (13, 24, 35),
    "one feature": (5, 1, 33),
    "one sample": (5, 20, 1),
    "wide": (31, 65, 50),
}


@pytest.fixture(params=ARRANGEMENTS)
def arrangement(request, monkeypatch):
    if ARRANGEMENTS[request.param] is not None:
        monkeypatch.setattr(cross_entropy_cpu, "step_plan", lambda *_: ARRANGEMENTS[request.param])
    return request.param


def problem(K, d, N, dtype, size=2.0, seed=0):
    rng = np.random.default_rng(seed)
    W = (size * rng.standard_normal((K, d)) / np.sqrt(d)).astype(dtype)
    H = (size * rng.standard_normal((N, d))).astype(dtype)
    return W, H, rng.integers(0, K, N)


def evaluate(W, H, y, scale=1.0):
    """All launchers, their outputs poisoned first."""
    found = {}
    for name in ("loss", "loss_and_grads", "log_loss_and_grads"):
        out = np.full(1, np.nan)
        grads = [np.full_like(W, np.nan), np.full_like(H, np.nan)] if "grads" in name else []
        arguments = [out, *grads] if name.startswith("log") else [scale, out, *grads]
        getattr(cross_entropy_cpu, name)(W, H, y, *arguments)
        found[name] = [out, *grads]
    out, new_W, new_H = np.full(1, np.nan), W.copy(), H.copy()
    cross_entropy_cpu.gradient_step(new_W, new_H, y, scale, 0.5, out)
    found["gradient_step"] = [out, new_W, new_H]
    return found


def expected(W, H, y):
    wide = W.astype(np.float64), H.astype(np.float64), y
    value, *_ = loss = reference.loss_and_grads(*wide)
    return {
        "loss": [value],
        "loss_and_grads": loss,
        "log_loss_and_grads": reference.log_loss_and_grads(*wide),
        "gradient_step": reference.gradient_step(*wide, 0.5),
    }


def compare(W, H, y):
    """Errors of sums of at most 101 terms, and of exponentials of gaps of size 20.

    A gap is off by about 4 roundings of 20, and so is its exponential, relatively: 100 roundings
    of the largest entry are some 10 times what is seen.
    """
    found, wanted = evaluate(W, H, y), expected(W, H, y)
    unit = 100 * np.finfo(W.dtype).eps
    for name, values in wanted.items():
        for got, want in zip(found[name], values, strict=True):
            bound = unit * max(1.0, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=name)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(arrangement, shape, dtype):
    compare(*problem(*SHAPES[shape], dtype))


@pytest.mark.parametrize("n_samples", range(1, 34))
def test_every_remainder_of_samples(arrangement, n_samples):
    compare(*problem(3, 5, n_samples, "float64"))


@pytest.mark.parametrize("n_classes", range(2, 15))
@pytest.mark.parametrize("dim", [4, 8, 9, 12])
def test_every_remainder_of_classes_and_features(arrangement, n_classes, dim):
    compare(*problem(n_classes, dim, 19, "float64"))


@pytest.mark.parametrize("labels", ["one class", "absent classes", "sorted", "unbalanced"])
def test_any_labels(arrangement, labels):
    W, H, y = problem(9, 10, 77, "float64")
    y = {
        "one class": np.full_like(y, 8),
        "absent classes": np.where(y % 3 == 0, y, 3),
        "sorted": np.sort(y),
        "unbalanced": np.where(np.arange(77) < 70, 4, y),
    }[labels]
    found = compare(W, H, y)
    if labels == "absent classes":
        assert len(np.unique(y)) < 9
        # What no sample calls its own is only ever pushed away.
        assert (reference.softmax(reference.logit_gaps(W, H, y), y).residuals[:, 1] > 0).all()
        assert np.isfinite(found["loss_and_grads"][1][1]).all()


def test_the_plan_reaches_both_arrangements_and_several_parts():
    """The shapes above are of the smallest plans; these cross its thresholds."""
    assert step_plan(5, 20, 50, 8) == step_plan(5, 20, 50, 8)
    few, many = (60, 40, 300), (200, 100, 150)
    assert not step_plan(*few, 8).sweep and step_plan(*few, 8).parts > 1
    assert step_plan(*many, 8).sweep and step_plan(*many, 8).parts > 1
    compare(*problem(*few, "float64"))
    compare(*problem(*many, "float64"))


@pytest.mark.parametrize("name", CASES)
def test_the_regimes_of_the_benchmarks(name):
    """Their K and d, the arrangement that those get, and some of their samples and features."""
    case = CASES[name]
    how = step_plan(case.n_classes, case.dim, case.n_samples, 4)
    assert (how.sweep, how.panels) == (case.n_classes >= 1000, case.n_classes >= 100)
    samples, dim = (130, case.dim) if case.n_classes < 5000 else (20, 24)
    few = replace(case, n_samples=min(case.n_samples, samples), dim=dim)
    compare(*few.arrays(labels="unbalanced"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_worse_than_the_plain_formula_in_the_same_precision(arrangement, dtype):
    """|exact - ours| <= |exact - plain| + tolerance, entry by entry.

    The tolerance is 8 roundings of the largest entry: sums in another order differ by so much.
    """
    W, H, y = problem(11, 17, 90, dtype)
    value, grad_W, grad_H = expected(W, H, y)["loss_and_grads"]
    Z = H @ W.T
    p = np.exp(Z - Z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    plain_value = -np.log(p[np.arange(90), y]).sum()
    p[np.arange(90), y] -= 1
    plain = plain_value, p.T @ H, p @ W
    ours = evaluate(W, H, y)["loss_and_grads"]
    for exact, theirs, got in zip((value, grad_W, grad_H), plain, ours, strict=True):
        tolerance = 8 * np.finfo(dtype).eps * np.abs(exact).max()
        assert (np.abs(exact - got) <= np.abs(exact - theirs) + tolerance).all()


def test_residuals_of_a_sample_sum_to_zero(arrangement):
    """With W = I the gradient of h is the residual itself; 5 terms of at most 1."""
    rng = np.random.default_rng(0)
    H, y = 5.0 * rng.standard_normal((60, 5)), rng.integers(0, 5, 60)
    rows = evaluate(np.eye(5), H, y)["loss_and_grads"][2].sum(axis=1)
    assert np.abs(rows).max() <= 5 * np.finfo(np.float64).eps


def test_the_same_bits_again(arrangement):
    arrays = problem(13, 21, 95, "float32")
    first, second = evaluate(*arrays), evaluate(*arrays)
    for name, values in first.items():
        for a, b in zip(values, second[name], strict=True):
            assert a.tobytes() == b.tobytes(), name


def test_the_same_bits_on_any_number_of_threads():
    """In a process of its own, which may have more threads than this one."""
    code = """
import hashlib, numba, numpy as np
import test_cross_entropy_cpu as t, test_hessian_cpu as h
for threads in (1, 2, 3, 4):
    numba.set_num_threads(threads)
    digest = hashlib.sha256()
    arrays = t.problem(13, 21, 95, "float64")
    for plan in filter(None, t.ARRANGEMENTS.values()):
        t.cross_entropy_cpu.step_plan = lambda *_: plan
        for values in t.evaluate(*arrays).values():
            for value in values:
                digest.update(value.tobytes())
    for plan in filter(None, h.ARRANGEMENTS.values()):
        h.hessian_cpu.plan = lambda *_: plan
        for value in h.evaluate(*arrays, *(x[::-1].copy() for x in arrays[:2])):
            digest.update(value.tobytes())
    print(digest.hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "NUMBA_NUM_THREADS": "4",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    digests = done.stdout.split()
    assert len(digests) == 4 and len(set(digests)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_a_step_refuses_what_is_not_finite(arrangement, bad):
    """W stays, and so do the rows around the bad one; 1e200 overflows in the product only."""
    W, H, y = problem(4, 6, 90, "float64")
    W *= 1e150
    H[50, 2] = bad
    new_W, new_H, out = W.copy(), H.copy(), np.zeros(1)
    cross_entropy_cpu.gradient_step(new_W, new_H, y, 1.0, 1e-300, out)
    assert not np.isfinite(out[0])
    assert np.array_equal(new_W, W)
    assert np.array_equal(new_H[48:53], H[48:53], equal_nan=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_loss(arrangement, bad):
    for sample in (0, 40, 89):
        W, H, y = problem(4, 6, 90, "float64")
        H[sample, 5] = bad
        for name, values in evaluate(W, H, y).items():
            assert not np.isfinite(values[0][0]), name


def test_blas_has_as_many_threads_as_before():
    """As it is called where the kernels still use it: by a product with the Hessian."""
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads():
        return [(x["filepath"], x["num_threads"]) for x in threadpool_info()]

    arrays = problem(200, 100, 150, "float64")
    assert plan(200, 100, 150, 8).blas
    with threadpool_limits(2, "blas"):
        before = threads()
        out = [np.empty_like(x) for x in arrays[:2]]
        hessian_cpu.hessian_vector_product(*arrays, *arrays[:2], 1.0, *out)
        assert threads() == before
        with pytest.raises(RuntimeError), threads_cpu.one_thread(), threads_cpu.one_thread():
            # NumPy's library is a copy of its own.
            ours = [x for x in threads() if "openblas" in x[0]]
            assert len(ours) == 2 and all(count == 1 for _, count in ours)
            raise RuntimeError
        assert threads() == before
        # Whoever leaves last puts back what the first one found.
        with ThreadPoolExecutor(1) as other, threads_cpu.serial_blas:
            other.submit(threads_cpu.serial_blas.__enter__).result()
        assert threads() != before
        threads_cpu.serial_blas.__exit__()
        assert threads() == before


def test_callers_take_turns():
    """Python threads that call at the same time get the bits each would get alone."""
    problems = [problem(60, 40, 300, "float64", seed=s) for s in range(4)]
    alone = [evaluate(*arrays)["loss_and_grads"] for arrays in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda arrays: evaluate(*arrays)["loss_and_grads"], problems))
    for a, b in zip(alone, together, strict=True):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
