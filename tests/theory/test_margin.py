"""Margins and Lemma 3.1's identity against loops, mpmath and the separation problem's optimum."""

import re

import mpmath as mp
import numpy as np
import pytest
import torch

import fastnc
from fastnc.theory import margin
from fastnc.theory.margin import TERMS, margin_decomposition


def problem(K, counts, d, seed, scale=1.0):
    """Random W, H and shuffled labels with the given class sizes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(K), counts))
    return scale * rng.standard_normal((K, d)), scale * rng.standard_normal((len(y), d)), y


def looped_margins(W, H, y):
    out = []
    for h, label in zip(H, y, strict=True):
        logits = [float(np.dot(w, h)) for w in W]
        out.append(logits[label] - max(z for j, z in enumerate(logits) if j != label))
    return np.array(out)


def separation(counts):
    """The optimum of the imbalanced separation problem: W W^T = V L V^T, H H^T = U L U^T.

    The label matrix less 1/K, (N, K), is U L V^T (Thrampoulidis et al., 2022); margins are 1.
    """
    K = len(counts)
    y = np.repeat(np.arange(K), counts)
    U, L, Vt = np.linalg.svd(np.eye(K)[y] - 1.0 / K, full_matrices=False)
    return Vt.T * np.sqrt(L), U * np.sqrt(L), y


SIZES = [
    (5, [10] * 5, 20),
    (3, [1] * 3, 2),
    (2, [4, 4], 1),
    (4, [7, 1, 3, 2], 6),
    (3, [5, 0, 2], 4),
]


@pytest.mark.parametrize(("K", "counts", "d"), SIZES)
def test_margins_are_those_of_a_loop(K, counts, d):
    W, H, y = problem(K, counts, d, seed=K)
    expected = looped_margins(W, H, y)
    assert np.ptp(expected) > 0.5
    # A few ulp of logits of size 10.
    np.testing.assert_allclose(fastnc.margins(W, H, y), expected, atol=1e-13)
    assert fastnc.neural_collapse_margin(W, H, y) == pytest.approx(expected.min(), abs=1e-13)
    constant = np.linalg.svd((np.eye(K) - 1 / K) @ np.diag(np.sqrt(counts)), compute_uv=False).sum()
    ratio = 2 * constant * expected.min() / ((W**2).sum() + (H**2).sum())
    assert fastnc.margin_ratio(W, H, y) == pytest.approx(ratio, rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    W, H, y = problem(4, [50] * 4, 6, seed=1)
    whole = fastnc.margins(W, H, y), margin_decomposition(W, H, y).uneven_margins
    monkeypatch.setattr(margin, "_BLOCK", 28)
    # A product of another shape may be summed in another order.
    np.testing.assert_allclose(fastnc.margins(W, H, y), whole[0], atol=1e-13)
    assert margin_decomposition(W, H, y).uneven_margins == pytest.approx(whole[1], rel=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_come_back_as_tensors(dtype):
    W, H, y = (x.astype(dtype) if x.dtype == float else x for x in problem(3, [4] * 3, 5, seed=2))
    tensors = torch.from_numpy(W), torch.from_numpy(H), torch.from_numpy(y)
    for function in (fastnc.margins, fastnc.neural_collapse_margin, fastnc.margin_ratio):
        theirs, ours = function(*tensors), function(W, H, y)
        assert isinstance(theirs, torch.Tensor) and theirs.dtype == tensors[0].dtype
        # Both are computed in float64 and rounded to the dtype once.
        np.testing.assert_allclose(theirs.numpy(), np.asarray(ours, dtype), rtol=1e-7)
    assert fastnc.margins(W, H, y).dtype == dtype


def test_a_float32_margin_has_float32s_digits_of_a_cancellation():
    # Logits of 1e4 apart by 1e-2: a float32 product would have lost the difference.
    W = np.array([[100.0, 1e-4], [100.0, 0.0]], np.float32)
    H = np.array([[100.0, 100.0]], np.float32)
    exact = float(W[0, 1]) * 100.0
    assert fastnc.margins(W, H, np.array([0]))[0] == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(("K", "n", "d"), [(5, 10, 20), (2, 3, 1), (3, 1, 7), (10, 4, 9)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_lemma_31s_identity_term_by_term(K, n, d, scale):
    W, H, y = problem(K, [n] * K, d, seed=K + n, scale=scale)
    means = np.stack([H[y == k].mean(axis=0) for k in range(K)])
    g, wbar = means.mean(axis=0), W.mean(axis=0)
    Z = H @ W.T
    own = Z[np.arange(len(y)), y]
    qbar = np.mean(own - (Z.sum(axis=1) - own) / (K - 1))
    q_min = looped_margins(W, H, y).min()
    constant, energy = (K - 1) * np.sqrt(n), (W**2).sum() + (H**2).sum()
    expected = {
        "classifier_mean": K * wbar @ wbar,
        "feature_mean": len(y) * g @ g,
        "within_class_energy": ((H - means[y]) ** 2).sum(),
        "misalignment": ((W - wbar - np.sqrt(n) * (means - g)) ** 2).sum(),
        "uneven_margins": 2 * constant * (qbar - q_min),
    }
    found = margin_decomposition(W, H, y)
    for name, value in expected.items():
        # Each is a sum of squares, or of non-negative differences; relative to the whole.
        assert getattr(found, name) == pytest.approx(value, rel=1e-12, abs=1e-12 * energy), name
    # The identity itself, to the 1e-12 that sums of N d squares in float64 allow.
    assert abs(energy - 2 * constant * q_min - sum(expected.values())) <= 1e-12 * energy
    assert abs(energy - 2 * constant * q_min - found.missing) <= 1e-12 * energy
    assert found.deficit == pytest.approx(1 - fastnc.margin_ratio(W, H, y), abs=1e-12)


@pytest.mark.parametrize("counts", [[7, 1, 3, 2], [5, 0, 2], [1, 100], [0, 0, 3, 9, 1]])
def test_the_identity_holds_for_unequal_classes(counts):
    K = len(counts)
    for seed in range(5):
        W, H, y = problem(K, counts, K + 2, seed)
        found = margin_decomposition(W, H, y)
        # As above: rounding of sums, relative to the whole.
        assert abs(found.energy - 2 * found.separation_constant * found.margin - found.missing) <= (
            1e-12 * found.energy
        )
        assert all(getattr(found, name) >= -1e-13 * found.energy for name in TERMS)
        assert fastnc.margin_ratio(W, H, y) < 1


@pytest.mark.parametrize("counts", [[4] * 5, [7, 1, 3, 2], [1, 100], [30, 2, 2]])
def test_the_ratio_is_one_at_the_optimum_of_the_separation_problem(counts):
    W, H, y = separation(counts)
    assert looped_margins(W, H, y) == pytest.approx(1.0, abs=1e-12)
    assert fastnc.margin_ratio(W, H, y) == pytest.approx(1.0, abs=1e-12)
    assert abs(margin_decomposition(W, H, y).deficit) < 1e-14
    # Unequal norms of W and H cost margin, as Remark 3.2 says of Theorem 3.3.
    assert fastnc.margin_ratio(2 * W, H, y) == pytest.approx(2 * 2 / 5, abs=1e-12)


def test_the_deficit_keeps_its_digits_where_the_ratio_rounds_to_one():
    K, n = 4, 3
    W, H, y = separation([n] * K)
    rng = np.random.default_rng(0)
    W = W + 1e-9 * rng.standard_normal(W.shape)
    H = H + 1e-9 * rng.standard_normal(H.shape)
    with mp.workdps(50):
        w, h = mp.matrix(W.tolist()), mp.matrix(H.tolist())
        Z = h * w.T
        q = min(Z[i, int(y[i])] - Z[i, j] for i in range(n * K) for j in range(K) if j != y[i])
        energy = sum(x * x for x in w) + sum(x * x for x in h)
        exact = float(1 - 2 * (K - 1) * mp.sqrt(n) * q / energy)
    assert 1e-10 < exact < 1e-8
    # The terms are differences of entries that are rounded at 1e-16 and deviate by 1e-9; the
    # subtraction from 1 would leave 1e-16 / 1e-9.
    assert margin_decomposition(W, H, y).deficit == pytest.approx(exact, rel=3e-7)


def test_it_prints_as_a_table_and_is_a_dict():
    found = margin_decomposition(*problem(3, [2] * 3, 4, seed=0))
    text = str(found)
    assert all(name in text for name in (*TERMS, "1 - margin_ratio"))
    assert found.as_dict()["margin"] == found.margin
    with pytest.raises(AttributeError):
        found.margin = 0.0


W3, H3, Y3 = problem(3, [2] * 3, 4, seed=0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((W3[:1], H3, Y3 * 0), "`W` must have at least 2 rows, one a class; got shape (1, 4)"),
        ((W3, H3[:, :2], Y3), "`H` must have 4 columns; got shape (6, 2)"),
        ((W3, H3, Y3[:4]), "`y` must have one label a sample (6); got 4"),
        ((W3, H3, Y3 + 1), "`y` must lie in 0..2 (3 classes were given); got 3 at index"),
        ((W3, H3, Y3 * 1.0), "`y` must hold integers; got float64"),
        ((W3 * np.nan, H3, Y3), "`W` must be finite; got nan at index (0, 0)"),
        ((W3.astype(np.float16), H3, Y3), "`W` must be float32 or float64; got float16"),
    ],
)
@pytest.mark.parametrize("function", [fastnc.margins, fastnc.margin_ratio, margin_decomposition])
def test_bad_arguments(function, arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        function(*arguments)


@pytest.mark.parametrize("function", [fastnc.margin_ratio, margin_decomposition])
def test_nothing_has_no_ratio(function):
    with pytest.raises(ValueError, match="`W` and `H` must not both be 0"):
        function(0 * W3, 0 * H3, Y3)


@pytest.mark.parametrize("power", [-1000, -540, 500, 1000])
def test_a_ratio_without_a_scale(power):
    """Of a power of two nothing rounds: beyond 1e-162 and 1e154 the squares did."""
    W, H, y = fastnc.theory.collapsed(radius=3.0, n_classes=4, n_per_class=2, dim=3)
    H = H + 0.1 * np.arange(24.0).reshape(8, 3)
    c = 2.0**power
    assert fastnc.margin_ratio(c * W, c * H, y) == fastnc.margin_ratio(W, H, y)
