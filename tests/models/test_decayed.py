"""Cross-entropy with weight decay: the closed form on both sides of its threshold."""

import model_oracles as oracles
import numpy as np
import pytest

from fastnc import models as M


def shapes(K, n, d, bias):
    return [(K, d), (K * n, d), *([(K,)] if bias else [])]


# c sqrt(n lW lH) in units of the threshold 1/K.
@pytest.mark.parametrize("strength", [0.05, 0.5, 0.95, 1.3])
@pytest.mark.parametrize(
    ("K", "n", "d", "bias"), [(2, 3, 1, False), (3, 2, 2, True), (4, 2, 3, False), (3, 1, 5, True)]
)
def test_against_bfgs(K, n, d, bias, strength):
    mu = strength / K / np.sqrt(n)
    lW, lH = 3.0 * mu, mu / 3.0
    best, found = oracles.least(oracles.cross_entropy([n] * K, lW, lH), shapes(K, n, d, bias))
    optimum = M.weight_decay(K, n, d, lW, lH, bias=bias).optimum()
    # BFGS ends at gradients of 1e-9 against a curvature of at least 0.01.
    assert optimum.value == pytest.approx(best, rel=1e-9)
    # The minimiser is one up to rotation; errors of the point are of the gradient's order.
    np.testing.assert_allclose(found[0] @ found[0].T, optimum.gram_W, atol=1e-5)
    np.testing.assert_allclose(found[1] @ found[1].T, optimum.gram_H, atol=1e-5)
    if bias:
        assert np.ptp(found[2]) < 1e-5


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("bias", [False, True])
def test_label_smoothing_against_bfgs(alpha, bias):
    K, n, d, lW, lH = 3, 2, 2, 0.03, 0.02
    plain = oracles.cross_entropy([n] * K, lW, lH, smoothing=alpha)
    best, _ = oracles.least(plain, shapes(K, n, d, bias))
    optimum = M.weight_decay(K, n, d, lW, lH, bias, alpha).optimum()
    assert optimum.value == pytest.approx(best, rel=1e-9)
    # Above the threshold c + alpha / K = 1 / K the labels say too little to pay for.
    c = np.sqrt(n * lW * lH)
    assert optimum.W.any() == (c + alpha / K < 1 / K)


def test_gram_matrices_are_those_of_the_docstring():
    K, n, lW, lH = 6, 5, 2e-3, 7e-3
    best = M.weight_decay(K, n, 5, lW, lH).optimum()
    a = np.log(1 / np.sqrt(n * lW * lH) - K + 1)
    C = np.eye(K) - 1 / K
    # Rounding.
    np.testing.assert_allclose(best.gram_W, np.sqrt(n * lH / lW) * a * C, atol=1e-13)
    np.testing.assert_allclose(best.W @ best.means.T, a * C, atol=1e-13)


def test_the_value_is_continuous_at_the_threshold():
    K, n = 4, 9
    values = [
        M.weight_decay(K, n, 3, lam, lam).optimum().value
        for lam in (np.nextafter(1 / K / 3, 0), 1 / K / 3, np.nextafter(1 / K / 3, 1))
    ]
    # Zero logits cost log K.
    np.testing.assert_allclose(values, np.log(K), rtol=1e-15)


def test_too_small_a_dimension_is_refused_unless_nothing_is_left():
    with pytest.raises(M.UnknownOptimum, match="no closed form is known for dim=2"):
        M.weight_decay(4, 1, 2, 0.01, 0.01).optimum()
    zero = M.weight_decay(4, 1, 2, 0.5, 0.5, bias=True).optimum()
    assert zero.value == pytest.approx(np.log(4)) and not zero.W.any() and not zero.bias.any()
    assert zero.source == "closed form: zero"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            (0.0, 1.0),
            "`weight_decay_W` must be positive; got 0. Without a penalty .* `fastnc.ULPM`",
        ),
        ((1.0, 0), "`weight_decay_H` must be positive; got 0"),
        ((5e-324, 1.0), "`weight_decay_W` must be at least 2.2e-308, below which floats have few"),
        ((-1.0, 1.0), "`weight_decay_W` must be a positive number; got -1.0"),
        ((1.0, np.inf), "`weight_decay_H` must be a positive number; got inf"),
        (([1.0], 1.0), r"`weight_decay_W` must be a positive number; got \[1.0\]"),
        ((1.0, 1.0, "no"), "`bias` must be True or False; got 'no'"),
        ((1.0, 1.0, False, 1.0), r"`label_smoothing` must lie in \[0, 1\); got 1.0"),
        ((1.0, 1.0, False, -0.1), r"`label_smoothing` must lie in \[0, 1\); got -0.1"),
        ((1.0, 1.0, False, np.nan), r"`label_smoothing` must lie in \[0, 1\); got nan"),
    ],
)
def test_bad_parameters(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        M.weight_decay(3, 2, 2, *arguments)


@pytest.mark.parametrize("model", [M.weight_decay, M.squared_error])
def test_penalties_whose_product_is_no_float(model):
    # c = 1e-290 and c = 1e290: all but no penalty, and nothing but one.
    small, large = model(3, 1, 4, 1e-290, 1e-290).optimum(), model(3, 1, 4, 1e290, 1e290).optimum()
    assert 0.0 < small.value < 1e-280 and np.isfinite(small.W).all() and small.W.any()
    none = np.log(3) if model is M.weight_decay else 0.5
    assert large.value == pytest.approx(none, rel=1e-15) and not large.W.any()
