"""KKT residuals of the separation problem (5): the formulas of Lemmas 3.2 and 3.3 as equalities."""

import math
import re
import subprocess
import sys

import mpmath as mp
import numpy as np
import pytest
import torch

import fastnc
from fastnc import reference
from fastnc.theory.example31 import Example31
from fastnc.theory.sphere import collapsed


def separated(K, n, d, seed, noise=0.3, scale=2.0):
    """A noisy collapsed point with every sample classified, labels shuffled."""
    rng = np.random.default_rng(seed)
    W, H, y = collapsed(scale * math.sqrt(2 * (K - 1) * math.sqrt(n)), K, n, d)
    W = W + noise * rng.standard_normal(W.shape) / math.sqrt(d)
    H = H + noise * rng.standard_normal(H.shape) / math.sqrt(d)
    order = rng.permutation(len(y))
    W, H, y = W, H[order], y[order]
    assert reference.neural_collapse_margin(W, H, y) > 0.5
    return W, H, y


CASES = [(3, 2, 4, 0), (5, 10, 20, 1), (2, 3, 2, 2), (4, 1, 3, 3)]


@pytest.mark.parametrize(("K", "n", "d", "seed"), CASES)
def test_the_formulas_of_lemma_32(K, n, d, seed):
    W, H, y = separated(K, n, d, seed)
    found = fastnc.kkt(W, H, y)
    _, grad_W, grad_H = reference.loss_and_grads(W, H, y)
    inner = (W * grad_W).sum() + (H * grad_H).sum()
    theta2 = (W**2).sum() + (H**2).sum()
    slope = math.sqrt((grad_W**2).sum() + (grad_H**2).sum())
    beta = -inner / (math.sqrt(theta2) * slope)
    q = reference.neural_collapse_margin(W, H, y)
    C = q / theta2
    # Sums of a few hundred terms; 1 - beta loses the digits that beta shares with 1.
    assert found.beta == pytest.approx(beta, abs=1e-13)
    assert found.misalignment == pytest.approx(1 - beta, abs=1e-13)
    assert found.margin == pytest.approx(q, rel=1e-13)
    assert found.epsilon == pytest.approx(math.sqrt(2 * (1 - beta) / C), rel=1e-10)
    assert found.delta == pytest.approx(K / (2 * C * q), rel=1e-12)
    # mathematics: the residual of the stationarity condition *is* epsilon for this C.
    assert found.stationarity == pytest.approx(found.epsilon, rel=1e-10)


@pytest.mark.parametrize(("K", "n", "d", "seed"), CASES)
def test_the_residuals_are_those_of_a_loop_over_the_constraints(K, n, d, seed):
    W, H, y = separated(K, n, d, seed)
    found = fastnc.kkt(W, H, y)
    q = found.margin
    W1, H1 = W / math.sqrt(q), H / math.sqrt(q)
    left_W, left_H, worst = W1.copy(), H1.copy(), 0.0
    for i, label in enumerate(y):
        for j in range(K):
            multiplier = found.multipliers[i, j]
            if j == label:
                assert multiplier == 0
                continue
            assert multiplier > 0
            left_W[label] -= multiplier * H1[i]
            left_W[j] += multiplier * H1[i]
            left_H[i] -= multiplier * (W1[label] - W1[j])
            constraint = (W1[label] - W1[j]) @ H1[i]
            # Feasible after scaling, to rounding.
            assert constraint >= 1 - 1e-12
            worst = max(worst, multiplier * (constraint - 1))
    norm = math.sqrt((left_W**2).sum() + (left_H**2).sum())
    # Rounding of sums of some hundred terms of size 1.
    assert found.stationarity == pytest.approx(norm, rel=1e-11)
    assert found.complementarity == pytest.approx(worst, rel=1e-11, abs=1e-15)
    C = q / ((W**2).sum() + (H**2).sum())
    # Lemma 3.2's bounds: x e^-x <= 1/e for each constraint.
    assert found.complementarity <= 1 / (math.e * C * q)
    assert found.complementarity <= found.delta


def test_any_smaller_constant_bounds_from_above():
    # The paper's C = -log(e^L - 1) / |theta|^2 at t0, once the sum loss is below log 2.
    W, H, y = separated(3, 2, 4, 0, noise=0.1, scale=2.0)
    total = reference.loss(W, H, y)
    assert total < math.log(2)
    theta2 = (W**2).sum() + (H**2).sum()
    found = fastnc.kkt(W, H, y)
    C = -math.log(math.expm1(total)) / theta2
    assert 0 < C <= found.margin / theta2
    assert math.sqrt(2 * found.misalignment / C) >= found.epsilon


def test_an_exact_kkt_point_has_no_residual():
    W, H, y = collapsed(6.0, 5, 3, 4)
    found = fastnc.kkt(W, H, y)
    # Only rounding is left, whose square root it is where 1 - beta is concerned.
    assert found.beta == 1.0 and found.misalignment < 1e-30
    assert found.epsilon < 1e-14 and found.stationarity < 1e-14 and found.complementarity < 1e-14


@pytest.mark.parametrize("C", [0.4, 1.0, 3.0])
def test_example_31_and_its_multipliers(C):
    example = Example31(C)
    found = fastnc.kkt(example.W, example.H, example.y)
    assert found.beta == 1.0 and found.stationarity < 1e-14
    assert found.margin == pytest.approx(2 * C**2, rel=1e-15)
    # Between the pairs, and e^-x times that within a pair: (8) is their limit.
    between = example.multipliers > 0
    inside = ~between & ~np.eye(4, dtype=bool)
    share = math.exp(-example.x)
    # p |theta| / |grad|, with |grad| from (9): one half of 2 / (1 + e^-x).
    np.testing.assert_allclose(found.multipliers[between], 0.5 / (1 + share), rtol=1e-13)
    np.testing.assert_allclose(found.multipliers[inside], 0.5 * share / (1 + share), rtol=1e-13)


def test_multipliers_8_are_exact_at_one_half():
    example = Example31(math.sqrt(0.5))
    W, H, y, multipliers = example.W, example.H, example.y, example.multipliers
    left_W, left_H = W.copy(), H.copy()
    for i in range(4):
        for j in range(4):
            left_W[i] -= multipliers[i, j] * H[i]
            left_W[j] += multipliers[i, j] * H[i]
            left_H[i] -= multipliers[i, j] * (W[i] - W[j])
            if multipliers[i, j]:
                # Active: 1 up to the rounding of C^2.
                assert (W[i] - W[j]) @ H[i] == pytest.approx(1.0, abs=1e-15)
    assert np.abs(left_W).max() < 1e-15 and np.abs(left_H).max() < 1e-15
    objective = 0.5 * ((W**2).sum() + (H**2).sum())
    assert objective == pytest.approx(4.0, abs=1e-14)
    # Theorem 3.2's optimum is sqrt(n) (K-1) = 3: a KKT point, and not optimal.
    W, H, y = collapsed(math.sqrt(6.0), 4, 1, 4)
    assert reference.neural_collapse_margin(W, H, y) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("scale", [20.0, 2000.0])
def test_the_deep_tail_against_mpmath(scale):
    """Margins of 1e3 and 1e7, apart by a few units: the loss is far below the smallest float."""
    K = 3
    W, H, y = separated(K, 2, 4, 0, noise=0.3 / scale**2)
    W, H = scale * W, scale * H
    found = fastnc.kkt(W, H, y)
    assert found.margin > 1e3
    with mp.workdps(60):
        w, h = mp.matrix(W.tolist()), mp.matrix(H.tolist())
        Z = h * w.T
        grad_W, grad_H = mp.zeros(*W.shape), mp.zeros(*H.shape)
        for i, label in enumerate(map(int, y)):
            e = [mp.exp(Z[i, j] - Z[i, label]) if j != label else mp.mpf(0) for j in range(K)]
            total = mp.fsum(e)
            r = [x / (1 + total) for x in e]
            r[label] = -total / (1 + total)
            for j in range(K):
                grad_W[j, :] += r[j] * h[i, :]
                grad_H[i, :] += r[j] * w[j, :]
        inner = mp.fdot(w, grad_W) + mp.fdot(h, grad_H)
        norms = [mp.sqrt(mp.fdot(a, a) + mp.fdot(b, b)) for a, b in ((w, h), (grad_W, grad_H))]
        misalignment = float(1 + inner / norms[0] / norms[1])
    assert 1e-12 < misalignment < 0.5
    # A gap is a float64 sum of size `margin`, and its rounding is what an exponent carries.
    assert found.misalignment == pytest.approx(misalignment, rel=1e-13 * max(1e3, found.margin))
    assert found.epsilon == pytest.approx(found.stationarity, rel=1e-10)


def test_without_separation_there_is_an_angle_and_no_point():
    rng = np.random.default_rng(0)
    W, H, y = rng.standard_normal((4, 3)), rng.standard_normal((20, 3)), rng.integers(0, 4, 20)
    found = fastnc.kkt(W, H, y)
    assert found.margin < 0 and -1 <= found.beta <= 1 and found.multipliers.shape == (20, 4)
    for name in ("epsilon", "delta", "stationarity", "complementarity"):
        assert math.isnan(getattr(found, name))


def test_tensors_and_float32():
    W, H, y = separated(5, 10, 20, 1)
    exact = fastnc.kkt(W, H, y)
    single = fastnc.kkt(*(torch.from_numpy(x.astype(np.float32)) for x in (W, H)), y)
    assert isinstance(single.multipliers, torch.Tensor) and isinstance(single.beta, float)
    # Rounding the inputs to float32 moves a gap of size 4 by 4 x 6e-8 a term.
    assert single.epsilon == pytest.approx(exact.epsilon, rel=1e-5)


@pytest.mark.parametrize(
    ("W", "H", "y", "sentence"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), [0, 1, 2], "must not be a stationary point"),
        (np.zeros((3, 2)), np.zeros((3, 3)), [0, 1, 2], "`H` must have 2 columns"),
        (np.eye(3), np.eye(3), [0, 1, 3], "`y` must lie in 0..2"),
        (np.eye(3), np.full((3, 3), np.inf), [0, 1, 2], "`H` must be finite; got inf"),
    ],
)
def test_bad_arguments(W, H, y, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fastnc.kkt(W, H, np.array(y))


def test_a_function_is_not_hidden_by_the_file_of_its_name():
    code = (
        "from fastnc.theory.kkt import kkt; from fastnc.dynamics.flow import flow; import fastnc;"
        "assert fastnc.kkt is kkt and fastnc.flow is flow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
