"""A row of a run: the small problem's single thread and all threads say the same."""

import math

import mpmath as mp
import numpy as np
import pytest

import fastnc
from fastnc.dynamics import snapshot


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_one_thread_and_all_agree_with_the_formulas_in_40_digits(scale):
    rng = np.random.default_rng(0)
    K, d, N = 4, 5, 10
    y = np.arange(N) % K
    W = scale * (np.eye(K, d) + 0.1 * rng.standard_normal((K, d)))
    H = scale * (np.eye(K, d)[y] + 0.1 * rng.standard_normal((N, d)))
    with mp.workdps(40):
        theta = [mp.mpf(float(x)) for x in (*W.ravel(), *H.ravel())]
        V, G = mp.matrix(W.tolist()), mp.matrix(H.tolist())
        Z = G * V.T
        loss, R = mp.mpf(0), mp.matrix(N, K)
        for i in range(N):
            terms = [mp.exp(Z[i, j] - Z[i, int(y[i])]) for j in range(K)]
            loss += mp.log(mp.fsum(terms))
            for j in range(K):
                R[i, j] = terms[j] / mp.fsum(terms) - (j == y[i])
        slope = [*(R.T * G), *(R * V)]
        length = mp.sqrt(mp.fsum(x * x for x in slope))
        norm = mp.sqrt(mp.fsum(x * x for x in theta))
        along = mp.fsum(a * b for a, b in zip(slope, theta, strict=True)) / (length * norm)
        # 1 - beta, with the sign that makes beta tend to 1.
        wanted = [mp.log(loss), length / loss, np.linalg.norm(W), np.linalg.norm(H), 1 + along]
        wanted = [float(x) for x in wanted]
    assert 0.0 < wanted[4] < 1.0 and math.isfinite(wanted[0])
    for summarise in (snapshot._small_objective, snapshot._objective):
        # Sums of some dozen terms, each a few roundings; the second is a difference of unit
        # vectors, squared.
        np.testing.assert_allclose(summarise(W, H, y), wanted, rtol=2e-14)


@pytest.mark.parametrize("y", [[2, 2, 2], [0]])
def test_samples_of_one_class_have_a_margin(y):
    model = fastnc.ULPM(3, dim=4, labels=y)
    run = fastnc.descend(model, lr=1.0, epochs=20)
    assert run["margin"][-1] == fastnc.neural_collapse_margin(run.W, run.H, run.y) > 0
    assert run["margin_ratio"][-1] == fastnc.margin_ratio(run.W, run.H, run.y)
    found = fastnc.kkt(run.W, run.H, run.y)
    # Two orders of the same sums.
    assert run["epsilon"][-1] == pytest.approx(found.epsilon, rel=1e-12)
    assert np.isnan(run["within_class"]).all() and np.isnan(run["nc1"]).all()
