"""bench/accuracy.py at small sizes: every operation within its bounds, and the oracle itself."""

import importlib
from pathlib import Path

import mpmath
import numpy as np
import oracles
import pytest

BENCH = Path(__file__).parent.parent.parent / "bench"


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("accuracy")


# Large enough that medians are over many entries: of one sample alone, whether the logits' own
# roundings fall out better here or there is a matter of luck.
SHAPES = [(2, 16, 64), (10, 64, 1000), (100, 16, 64), (1000, 16, 64)]


KINDS = ("1", "5", "margins", "equal gaps")
# Wider numbers than float64 take their time: of the largest, collapse alone.
CASES = [(shape, kind, "float32") for shape in SHAPES for kind in KINDS]
CASES += [(shape, kind, "float64") for shape in SHAPES[:-1] for kind in KINDS]
CASES += [(SHAPES[-1], "equal gaps", "float64")]


@pytest.mark.parametrize(("shape", "kind", "dtype"), CASES)
def test_no_less_exact_than_torch(accuracy, shape, kind, dtype):
    """Within 2 ulp of torch's error, and with exact logits within 1e-6 and 1e-14."""
    if dtype == "float64" and np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("needs numbers of more than 53 bits")
    found = list(accuracy.rows(accuracy.Case(kind, *shape, dtype), []))
    assert len(found) > 50
    # Equal logits make equal terms of a sum over classes, which are all rounded the same way: a
    # chain of 256 of them may lose a few units more than torch's shorter ones.
    chained = ("grad_H", "grad_H / loss", "HH") if kind in accuracy.EXACT_LOGITS else ()
    beyond = [
        row for row in found
        if row["beyond"] and not (row["result"] in chained and row["above torch, ulp"] < 8.0)
    ]  # fmt: skip
    assert not beyond, accuracy.table(beyond)


def test_the_wider_numbers_are_mpmaths(accuracy):
    """A dozen samples in 50 digits; longdouble has 18, its sums a dozen roundings."""
    W, H, y = accuracy.draw(accuracy.Case("5", 7, 5, 12, "float64"), 0)
    rng = np.random.default_rng(1)
    dW, dH = rng.standard_normal(W.shape), rng.standard_normal(H.shape)
    told = oracles.cross_entropy(W, H, y, dW, dH)
    found, _ = accuracy.wide.objective(W, H, y, "float64")
    found |= accuracy.wide.hessian(W, H, y, dW, dH, "float64")
    eps = float(np.finfo(np.longdouble).eps)
    for name, other in (("total", "loss"), *((n, n) for n in ("grad_W", "grad_H", "HW", "HH"))):
        exact = np.atleast_1d(told[other])
        largest = max(abs(e) for e in exact.flat)
        for a, e in zip(found[name].flat, exact.flat, strict=True):
            # Two numbers carry a longdouble to mpmath.
            high = float(a)
            with mpmath.workdps(oracles.DIGITS):
                number = mpmath.mpf(high) + mpmath.mpf(float(a - np.longdouble(high)))
                assert abs(number - e) < 400 * eps * largest
