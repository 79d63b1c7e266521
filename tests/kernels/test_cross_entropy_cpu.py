"""The cross-entropy kernels against the reference: every arrangement, shape, dtype and label."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_problems import SHAPES, evaluate, problem

from fastnc import reference
from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
from fastnc.kernels.cpu import hessian as hessian_cpu
from fastnc.kernels.cpu import threads as threads_cpu
from fastnc.kernels.cpu.plan import plan

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from suite.cases import CASES  # noqa: E402


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


def test_the_plan_reaches_several_parts_blocks_and_products():
    """The shapes above are of the smallest plans; these cross its thresholds."""
    assert plan(5, 20, 50, 8) == plan(5, 20, 50, 8)
    found = {}
    for shape in ((60, 40, 3000), (600, 30, 200), (1100, 600, 70), (6, 200, 150)):
        planned = found[shape] = plan(*shape, 8)
        assert planned.parts == 1 or planned.parts * planned.block >= 512
        compare(*problem(*shape, "float64"))
    assert {planned.products for planned in found.values()} == {"tiles", "dots", "blas"}
    assert {planned.divides for planned in found.values()} == {"samples", "classes"}
    assert found[60, 40, 3000].parts > 1 and found[600, 30, 200].block < 600


@pytest.mark.parametrize("name", CASES)
def test_the_regimes_of_the_benchmarks(name):
    """Their K and d, the products that those get, and some of their samples and features."""
    case = CASES[name]
    planned = plan(case.n_classes, case.dim, case.n_samples, 4)
    assert planned.divides == ("classes" if case.n_classes >= 10_000 else "samples")
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
import kernel_problems as t
for threads in (1, 2, 3, 4):
    numba.set_num_threads(threads)
    digest = hashlib.sha256()
    arrays = t.problem(13, 21, 95, "float64")
    for name, plan in t.PLANS.items():
        if plan is None:
            continue
        t.cross_entropy_cpu.plan = t.hessian_cpu.plan = lambda *_, **__: plan
        for values in t.evaluate(*arrays).values():
            for value in values:
                digest.update(value.tobytes())
        if name in t.BY_SAMPLES:
            for value in t.hessian(*arrays, *(x[::-1].copy() for x in arrays[:2])):
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

    arrays = problem(600, 300, 150, "float64")
    assert plan(600, 600, 150, 8).products == "blas"
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
    problems = [problem(60, 40, 1800, "float64", seed=s) for s in range(4)]
    alone = [evaluate(*arrays)["loss_and_grads"] for arrays in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda arrays: evaluate(*arrays)["loss_and_grads"], problems))
    for a, b in zip(alone, together, strict=True):
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
