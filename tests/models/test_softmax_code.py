"""Softmax codes: where they are known, and what the search finds where they are not."""

import itertools

import numpy as np
import pytest

import fastnc
from fastnc import models as M


def least_margin(W, H):
    """`min_k min_{j != k} <w_k - w_j, h_k>`, the definition of the margin that a code maximises."""
    pairs = itertools.permutations(range(len(W)), 2)
    return min((W[k] - W[j]) @ H[k] for k, j in pairs)


@pytest.mark.parametrize(
    ("K", "d", "value", "source"),
    [
        (2, 1, 2.0, "simplex"),
        (4, 6, 4 / 3, "simplex"),
        (5, 2, 1 - np.cos(2 * np.pi / 5), "polygon"),
        (5, 3, 1.0, "orthoplex"),
        (6, 3, 1.0, "orthoplex"),
        (7, 4, 1.0, "orthoplex"),
    ],
)
def test_known_codes(K, d, value, source):
    model = M.softmax_code(K, d)
    code = model.optimum()
    assert code.proven and code.source == f"closed form: {source}"
    # Rounding.
    assert code.value == pytest.approx(value, rel=1e-14)
    assert model.violation(code.W, code.means) < 1e-14
    assert fastnc.one_vs_rest_distance(code.W) == pytest.approx(value, rel=1e-13)
    assert least_margin(code.W, code.means) == pytest.approx(value, rel=1e-13)
    found = fastnc.solve(model)
    # The polish ends at the last digits; it never finds a code that is farther apart.
    assert abs(found.gap) < 1e-8 and least_margin(found.W, found.H) == pytest.approx(value)


def test_where_none_is_known_the_best_found_is_told_as_such():
    model = M.softmax_code(12, 3)
    code = model.optimum()
    assert not code.proven and "not proven" in code.source
    # The icosahedron: a vertex is 1 - 1 / sqrt 5 above the pentagon of its neighbours.
    assert code.value == pytest.approx(1 - 1 / np.sqrt(5), rel=1e-9)
    assert least_margin(code.W, code.means) == pytest.approx(code.value, rel=1e-12)
    found = fastnc.solve(model, starts=2)
    assert found.gap is None and found.optimum is None and "optimum unknown" in found.reason
    assert found.value <= code.value + 1e-9
    rng = np.random.default_rng(0)
    others = rng.standard_normal((50, 12, 3))
    assert max(fastnc.one_vs_rest_distance(W) for W in others) < code.value


def test_it_is_where_unit_vectors_go_as_their_temperature_grows():
    hot = fastnc.solve(M.normalized(6, 1, 3, 200.0), starts=4)
    # The softened margin is off by log(K) over the temperature.
    assert least_margin(hot.W, hot.H) == pytest.approx(1.0, abs=np.log(6) / 200)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: M.softmax_code(1, 3), "`n_classes` must be an integer of at least 2; got 1"),
        (lambda: M.softmax_code(3, 0), "`dim` must be an integer of at least 1; got 0"),
        (lambda: M.softmax_code(3, 1), "`dim` must be at least 2 for 3 classes; got 1"),
        (
            lambda: fastnc.descend(M.softmax_code(3, 2), epochs=3),
            "a softmax code has no gradient to descend along: .* `fastnc.models.normalized`",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
