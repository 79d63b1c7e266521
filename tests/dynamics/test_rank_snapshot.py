"""A row of a run over ranks, near collapse, where `1 - beta` is small, beside 50 digits."""

import mpmath as mp
import numpy as np
import pytest
import torch

from fastnc._core.ranks import Workers
from fastnc.dynamics import rank_snapshot
from fastnc.theory.sphere import collapsed

K, N, D = 3, 6, 4


def in_fifty_digits(W, H, y, bias):
    """1 - beta and epsilon, from the definitions."""
    V, G = mp.matrix(W.tolist()), mp.matrix(H.tolist())
    Z = G * V.T
    R, margin = mp.matrix(N, K), mp.inf
    for i in range(N):
        own = int(y[i])
        gaps = [Z[i, j] + mp.mpf(float(bias[j])) for j in range(K)]
        gaps = [g - gaps[own] for g in gaps]
        total = mp.fsum(mp.exp(g) for g in gaps)
        for j in range(K):
            R[i, j] = mp.exp(gaps[j]) / total
        # Never p - 1: its digits are gone where p is 1 but for them.
        R[i, own] = -mp.fsum(R[i, j] for j in range(K) if j != own)
        margin = min(margin, *(Z[i, own] - Z[i, j] for j in range(K) if j != own))
    slope, theta = [*(R.T * G), *(R * V)], [*V, *G]
    norms = [mp.sqrt(mp.fsum(x * x for x in v)) for v in (slope, theta)]
    gap = 1 + mp.fsum(a * b for a, b in zip(slope, theta, strict=True)) / (norms[0] * norms[1])
    return gap, norms[1] * mp.sqrt(2 * gap / margin), margin


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("away", [1e-3, 1e-6, 1e-8])
@pytest.mark.parametrize("radius", [4.0, 30.0])
def test_epsilon_keeps_its_digits_near_collapse(monkeypatch, radius, away, with_bias):
    rng = np.random.default_rng(1)
    W, H, y = collapsed(radius, K, N // K, D)
    W, H = (x + away * rng.standard_normal(x.shape) for x in (W, H))
    bias = np.zeros(K)
    monkeypatch.setattr(rank_snapshot, "_CHUNK_BYTES", 8 * 4 * 5)
    with mp.workdps(60):
        gap, epsilon, margin = in_fifty_digits(W, H, y, bias)
    assert 0 < gap < 1e-3
    tensors = [torch.from_numpy(x) for x in (W, bias, H, y)]
    row = rank_snapshot.objective(
        tensors[0], tensors[1] if with_bias else None, *tensors[2:], float(margin), Workers()
    )
    # The vector of which gap is half the square has entries of about `away / radius`, each off by
    # rounding of the logits, of size margin, in the residuals' exponentials: the subtraction kept
    # no digit of 1e-16 here.
    rounding = 50 * np.finfo(float).eps * (1 + float(margin))
    assert row["epsilon"] == pytest.approx(float(epsilon), rel=rounding * radius / away)
