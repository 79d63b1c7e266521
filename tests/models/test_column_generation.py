"""The way out of local minima over non-negative features."""

import numpy as np
import pytest

from fastnc import models as M
from fastnc.models.column_generation import _gradient, escape

MODEL = M.relu_features((9, 4, 2), 4, 0.02, 0.01)


def test_nothing_leads_out_of_the_global_optimum():
    best = MODEL.optimum()
    # It has one direction a class, and an empty fourth: the dual certificate holds.
    assert escape(MODEL, best.W, best.H) is None


@pytest.mark.parametrize("given_up", [0, 1, 2])
def test_a_class_that_was_given_up_is_taken_in_again(given_up):
    best = MODEL.optimum()
    column = int(np.argmax(best.means[given_up]))
    W, H = best.W.copy(), best.H.copy()
    W[:, column] = H[:, column] = 0.0
    better_W, better_H = escape(MODEL, W, H)
    assert better_H.min() >= 0.0
    before, after = MODEL.objective(W, H), MODEL.objective(better_W, better_H)
    # The classes do not interact at the optimum: one column is all that is missing. Its size is
    # tried in powers of two, which is off by at most a factor of sqrt 2.
    assert after < before and after == pytest.approx(best.value, rel=0.05)
    assert not W[:, column].any()


def test_columns_of_one_direction_are_joined_to_make_room():
    best = MODEL.optimum()
    W, H = best.W.copy(), best.H.copy()
    # The largest class on two columns, of 0.3 and 0.7 of its product, the smallest without one.
    first, last = (int(np.argmax(best.means[k])) for k in (0, 2))
    W[:, 3], H[:, 3] = np.sqrt(0.3) * W[:, first], np.sqrt(0.3) * H[:, first]
    W[:, first], H[:, first] = np.sqrt(0.7) * W[:, first], np.sqrt(0.7) * H[:, first]
    assert MODEL.objective(W, H) == pytest.approx(best.value, rel=1e-14)
    W = np.delete(W, last, axis=1)
    H = np.delete(H, last, axis=1)
    narrow = M.relu_features((9, 4, 2), 3, 0.02, 0.01)
    better = escape(narrow, W, H)
    assert narrow.objective(*better) == pytest.approx(best.value, rel=0.05)


def test_without_an_empty_column_there_is_no_way():
    W, H = MODEL.init(seed=0)
    assert escape(MODEL, W, H) is None


def test_the_gradient_keeps_its_digits_in_the_tail():
    """At a margin of 100 `p_y - 1` is 0; the label's entry is minus the sum of the others."""
    margin = 100.0
    G = _gradient(margin * np.eye(3), np.eye(3), np.arange(3))
    wrong = np.exp(-margin) / 3.0
    # The exponential's argument is exact, so that its rounding is all: a few times 1e-16.
    np.testing.assert_allclose(G[~np.eye(3, dtype=bool)], wrong, rtol=1e-14)
    np.testing.assert_allclose(np.diag(G), -2.0 * wrong, rtol=1e-14)
