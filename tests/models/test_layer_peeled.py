"""What every row of Table 1 promises: objective, gradients, constraint, start, minimiser."""

import dataclasses
import pickle

import model_oracles as oracles
import numpy as np
import pytest

from fastnc import models as M
from fastnc.models.layer_peeled import factors, frame

SIZES = (5, 2, 2, 1)
ROWS = {
    "sphere": M.sphere(4, 3, 3, 3.0),
    "norm_constrained": M.norm_constrained(4, 3, 3, 2.0, 1.5),
    "normalized": M.normalized(4, 3, 3, 4.0),
    "weight_decay": M.weight_decay(4, 3, 3, 0.02, 0.01),
    "weight_decay, bias": M.weight_decay(4, 3, 5, 0.02, 0.01, bias=True),
    "weight_decay, smoothed": M.weight_decay(4, 3, 3, 0.02, 0.01, label_smoothing=0.2),
    "weight_decay, both": M.weight_decay(4, 3, 3, 0.02, 0.01, True, 0.2),
    "squared_error": M.squared_error(4, 3, 5, 0.02, 0.01),
    "squared_error, bias": M.squared_error(4, 3, 3, 0.02, 0.01, bias=True),
    "imbalanced_squared_error": M.imbalanced_squared_error(SIZES, 4, 0.02, 0.01),
    "imbalanced_squared_error, bias": M.imbalanced_squared_error(SIZES, 4, 0.02, 0.01, True),
    "imbalanced": M.imbalanced(SIZES, 4, 0.02, 0.01),
    "relu_features": M.relu_features(SIZES, 4, 0.02, 0.01),
    "separation": M.separation(4, 3, 3),
    "seli": M.seli(SIZES, 4),
}
row = pytest.mark.parametrize("model", ROWS.values(), ids=ROWS.keys())


def plain(model):
    """The objective of a row from `model_oracles`, from the row's parameters."""
    sizes = model.counts.tolist()
    decay = (getattr(model, "weight_decay_W", 0.0), getattr(model, "weight_decay_H", 0.0))
    if isinstance(model, (M.separation, M.seli)):
        return lambda W, H, b=None: 0.5 * (W.square().sum() + H.square().sum())
    if isinstance(model, (M.squared_error, M.imbalanced_squared_error)):
        return oracles.squared_error(sizes, *decay)
    scale = getattr(model, "temperature", 1.0)
    return oracles.cross_entropy(sizes, *decay, scale, getattr(model, "label_smoothing", 0.0))


def drawn(model, seed):
    """A feasible point away from every start, with a bias where the row has one."""
    W, H = model.init(seed)
    bias = np.random.default_rng(seed).standard_normal(4) if model.has_bias else None
    return W, H, bias


@row
def test_the_objective_is_the_formula(model):
    W, H, bias = drawn(model, 1)
    # A few dozen float64 terms.
    expected = oracles.value(plain(model), W, H, bias)
    assert model.objective(W, H, bias) == pytest.approx(expected, rel=1e-13)
    single = model.objective(W.astype("f4"), H.astype("f4"), bias)
    # Rounding of the entries to float32.
    assert single == pytest.approx(expected, rel=1e-5)


@row
def test_gradients_are_central_differences(model):
    W, H, bias = drawn(model, 2)
    g = model.value_and_grads(W, H, bias)
    assert g.value == model.objective(W, H, bias)
    numeric = oracles.central_differences(
        lambda *x: model.objective(*x), W.copy(), H.copy(), None if bias is None else bias.copy()
    )
    for ours, expected in zip((g.W, g.H, g.bias), numeric, strict=False):
        # Differences of values near 1 at steps of 1e-6: rounding leaves 1e-10.
        np.testing.assert_allclose(ours, expected, atol=3e-9)


@row
def test_gradients_pulled_back_are_those_along_the_constraint(model):
    W, H, bias = drawn(model, 3)
    W, H = 1.3 * W, 0.8 * H
    at = model.retract(W, H)
    g = model.value_and_grads(*at, bias)
    ours = model.pullback(W, H, g.W, g.H)
    numeric = oracles.central_differences(
        lambda W, H, b: model.objective(*model.retract(W, H), bias), W.copy(), H.copy()
    )
    for grad, expected in zip(ours, numeric, strict=True):
        np.testing.assert_allclose(grad, expected, atol=3e-9)


@row
def test_starts_lie_on_the_constraint_and_are_the_seeds(model):
    W, H = model.init(seed=3)
    assert W.shape == (4, model.dim) and H.shape == (len(model.y), model.dim)
    if not isinstance(model, (M.separation, M.seli)):
        # Norms of rounded entries.
        assert model.violation(W, H) < 1e-15
        assert model.violation(2 * W, -2 * H) > 0.5 or "decay" in repr(model)
    again, other = model.init(seed=3), model.init(seed=4)
    assert np.array_equal(W, again[0]) and not np.array_equal(W, other[0])
    assert model.init(3, "float32")[1].dtype == np.float32


@row
def test_the_stated_minimiser_has_the_stated_value(model):
    best = model.optimum()
    W, H, bias = best.W, best.H, best.bias
    assert (bias is not None) == model.has_bias
    # Rounding, and for the convex program its duality gap.
    assert model.violation(W, H) < 1e-12
    assert model.objective(W, H, bias) == pytest.approx(best.value, rel=1e-12)
    assert oracles.value(plain(model), W, H, bias) == pytest.approx(best.value, rel=1e-12)
    assert best.certificate < 1e-10 and best.source
    np.testing.assert_allclose(best.gram_W, W @ W.T)
    np.testing.assert_allclose(best.gram_H, H @ H.T, atol=1e-15)
    # Stationary: what the constraint lets through of the gradient is zero.
    if isinstance(model, (M.separation, M.seli, M.relu_features)):
        return
    g = model.value_and_grads(W, H, bias)
    for grad in model.pullback(W, H, g.W, g.H):
        # The convex program's point is exact to the root of its gap.
        np.testing.assert_allclose(grad, 0.0, atol=1e-8)
    if bias is not None:
        np.testing.assert_allclose(g.bias, 0.0, atol=1e-14)


@row
def test_rows_are_values(model):
    assert dataclasses.replace(model) == model and hash(dataclasses.replace(model)) == hash(model)
    assert "np." not in repr(model) and model.paper and model.landscape
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.dim = 7
    with pytest.raises(ValueError, match="read-only"):
        model.y[0] = 3


@pytest.mark.parametrize(("K", "d"), [(2, 1), (4, 3), (5, 9)])
def test_the_frame_is_a_simplex(K, d):
    E = frame(K, d)
    np.testing.assert_allclose(E @ E.T, np.eye(K) - 1 / K, atol=1e-15)


def test_factors_attain_the_nuclear_norm():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 4))
    n, lW, lH = np.array([3, 1, 7, 2]), 0.3, 0.02
    W, means = factors(X, n, 2, lH / lW)
    np.testing.assert_allclose(W @ means.T * np.sqrt(n), X, atol=1e-14)
    penalty = lW / 2 * (W**2).sum() + lH / 2 * (n @ (means**2).sum(axis=1))
    nuclear = np.linalg.svd(X, compute_uv=False).sum()
    assert penalty == pytest.approx(np.sqrt(lW * lH) * nuclear, rel=1e-14)
    with pytest.raises(M.UnknownOptimum, match=r"have rank 2, which `dim`=1 cannot hold"):
        factors(X, n, 1, 1.0)


GOOD = ROWS["weight_decay, bias"]
W0, H0 = GOOD.init(0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: GOOD.objective(W0[:2], H0), r"`W` must have 4 rows; got shape \(2, 5\)"),
        (lambda: GOOD.objective(W0, H0[:, :2]), r"`H` must have 5 columns; got shape \(12, 2\)"),
        (lambda: GOOD.objective(W0, H0.astype("f4")), "must have one dtype; got float64 and"),
        (lambda: GOOD.objective(W0, H0, np.ones(3)), r"`bias` must have shape \(4,\); got \(3,\)"),
        (lambda: ROWS["sphere"].objective(*ROWS["sphere"].init(), np.ones(4)), "has no bias"),
        (lambda: GOOD.init(-1), "`seed` must be an integer of at least 0; got -1"),
        (lambda: GOOD.init(0, "int8"), "`dtype` must be 'float32' or 'float64'; got 'int8'"),
        (lambda: M.weight_decay(1, 3, 3, 1.0, 1.0), "`n_classes` must be an integer of at least 2"),
        (lambda: M.weight_decay(3, 0, 3, 1.0, 1.0), "`n_per_class` must be .* at least 1; got 0"),
        (lambda: M.sphere(3, 2, 0, 1.0), "`dim` must be an integer of at least 1; got 0"),
        (lambda: M.imbalanced((3,), 2, 1.0, 1.0), r"samples of at least 2 classes; got \(3,\)"),
        (lambda: M.imbalanced(7, 2, 1.0, 1.0), "`class_sizes` must list the samples .* got 7"),
        (lambda: M.imbalanced("34", 2, 1.0, 1.0), "`class_sizes` must list .* got '34'"),
        (lambda: M.imbalanced((3, 0), 2, 1.0, 1.0), r"`class_sizes\[1\]` must be .* at least 1"),
        (lambda: M.seli((3, 2.5), 2), r"`class_sizes\[1\]` must be an integer .* got 2.5"),
    ],
)
def test_bad_sizes_and_arrays(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


@row
def test_a_model_is_shown_and_pickled_under_its_public_name(model):
    name = type(model).__name__
    assert (getattr(M, name) is type(model) and repr(model).startswith(f"{name}(n_classes=")) or (
        repr(model).startswith(f"{name}(class_sizes=")
    )
    again = pickle.loads(pickle.dumps(model))
    assert repr(again) == repr(model) and (again.y == model.y).all()
    assert repr(eval(repr(model), vars(M))) == repr(model)
