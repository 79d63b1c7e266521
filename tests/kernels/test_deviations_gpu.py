"""The Triton second pass against NumPy in float64, and as ClassDeviations calls it."""

import numpy as np
import oracles
import pytest
import torch
from interpreted import DEVICE, tensors

import fastnc
from fastnc.collapse import second_pass
from fastnc.kernels.gpu import deviations as deviations_gpu

# (P, d, N): one direction; a sample beyond a tile; more directions than a tile; more classes too.
SHAPES = [(2, 1, 3), (5, 33, 65), (70, 67, 80)]


def problem(P, d, N, single):
    """H, order, owner, present and the frame; class 1 of P + 1 has no sample."""
    H, y, W, bias = oracles.clouds(P + 1, d, N, absent=[1], offset=3.0)
    # So far from the means that not every decision is the nearest one.
    W += np.random.default_rng(2).standard_normal(W.shape)
    if single:
        H = H.astype(np.float32)
    present = np.flatnonzero(np.arange(P + 1) != 1)
    owner = np.searchsorted(present, y)
    means = np.array([H[y == k].astype(np.float64).mean(axis=0) for k in present])
    g = means.mean(axis=0)
    C = means - g
    U, lengths, Vt = np.linalg.svd(C, full_matrices=False)
    r = int((lengths > 1e-9 * lengths[0]).sum())
    tilt = np.random.default_rng(0).standard_normal(r)
    frame = (
        means, g, Vt[:r], U[:, :r] * lengths[:r], lengths[:r] ** -2.0, tilt,
        (C**2).sum(axis=1), W, W @ g + bias,
    )  # fmt: skip
    return H, owner, present, frame


def sums_of(H, owner, present, frame):
    """The nine sums, by their definitions."""
    means, g, Q, _, weights, tilt, _, W, offset = frame
    H = H.astype(np.float64)
    X, Y = H - means[owner], H - g
    T = X @ Q.T
    distances = ((H[:, None] - means) ** 2).sum(axis=2)
    Z = Y @ W.T + offset
    for gap in (np.diff(np.sort(distances)[:, :2]), np.diff(np.sort(Z)[:, -2:])):
        assert gap.min() > 1e-5, "no tie that rounding could decide"
    rows = np.arange(len(H))
    own = Z[rows, present[owner]]
    rivals = Z.copy()
    rivals[rows, present[owner]] = -np.inf
    decided, nearest = Z.argmax(axis=1), distances.argmin(axis=1)
    agree = decided == present[nearest]
    assert agree.sum() > 0 and (len(H) < 10 or agree.sum() < len(H))
    return [
        np.sqrt((X**2).sum(axis=1)).sum(), np.sqrt((Y**2).sum(axis=1)).sum(),
        (T**2 * weights).sum(), ((T @ tilt) ** 2).sum(), (X**2).sum(),
        (nearest == owner).sum(), agree.sum(), (decided == present[owner]).sum(),
        (own - rivals.max(axis=1)).min(),
    ]  # fmt: skip


def launch(H, order, owner, present, frame, dtype):
    """The kernel's sums, with products in `dtype`."""
    frame = [a.astype(dtype) if i in (2, 3, 7) else a for i, a in enumerate(frame)]
    sums = torch.zeros(9, dtype=torch.float64, device=DEVICE)
    sums[8] = torch.inf
    deviations_gpu.deviations(*tensors(H, order, owner, present), tensors(*frame), sums)
    return sums.cpu().numpy()


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
# Six terms leave 24 bits of a factor, 6e-8; sums of up to 67 terms, squared, lose a few.
@pytest.mark.parametrize(
    ("single", "products", "tolerance"),
    [(True, "float32", 1e-6), (True, "float64", 1e-12), (False, "float64", 1e-12)],
)
def test_the_sums(sizes, single, products, tolerance):
    H, owner, present, frame = problem(*sizes, single)
    exact = sums_of(H, owner, present, frame)
    order = np.random.default_rng(1).permutation(len(H))
    got = launch(H, order, owner[order], present, frame, products)
    np.testing.assert_allclose(got, exact, rtol=tolerance)
    assert np.array_equal(got[5:8], exact[5:8])
    # Norms are in float64 whatever the products are.
    np.testing.assert_allclose(got[:2], exact[:2], rtol=1e-12)


def test_no_classifier_and_chunks(monkeypatch):
    H, owner, present, frame = problem(*SHAPES[1], False)
    exact = sums_of(H, owner, present, frame)
    order = np.arange(len(H))
    bare = (*frame[:7], frame[7][:0], frame[8][:0])
    got = launch(H, order, owner, present, bare, "float64")
    np.testing.assert_allclose(got[:6], exact[:6], rtol=1e-12)
    assert np.array_equal(got[6:], [0.0, 0.0, np.inf])
    norms = (*bare[:3], bare[3][:0], *bare[4:])
    got = launch(H, order, owner, present, norms, "float64")
    np.testing.assert_allclose(got[:5], exact[:5], rtol=1e-12)
    assert np.isnan(got[5])
    # Room for the projections of one block of samples at a time: the same bits.
    whole = launch(H, order, owner, present, frame, "float64")
    monkeypatch.setattr(deviations_gpu, "SCRATCH_BYTES", 1)
    np.testing.assert_array_equal(launch(H, order, owner, present, frame, "float64"), whole)


def test_equal_means_have_no_direction():
    H = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]])
    means, g, W = np.full((2, 2), 2.0), np.full(2, 2.0), np.array([[1.0, 0.0], [1.0, 0.0]])
    none = np.empty((0, 2)), np.empty((2, 0)), np.empty(0), np.empty(0)
    frame = (means, g, *none, np.zeros(2), W, W @ g)
    got = launch(H, np.arange(3), np.array([0, 0, 1]), np.arange(2), frame, "float64")
    # All means and all logits are equal: both decisions are the first class.
    np.testing.assert_array_equal(got, [2.0, 2.0, np.nan, 0.0, 2.0, 2.0, 3.0, 2.0, 0.0])


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("K", [7, 60])
def test_as_the_second_pass_calls_it(K, resident, monkeypatch):
    H, y, W, bias = oracles.clouds(K, 50, 90, absent=[2], dtype=np.float32)
    statistics = fastnc.ClassStatistics(K, 50)
    statistics.update(H, y)
    second = fastnc.ClassDeviations(statistics, W, bias)
    monkeypatch.setattr(second_pass, "RESIDENT_CUDA", 1 << 24 if resident else 0)
    got = second._pass._triton_sums(*tensors(H), y)
    # From 48 directions on single-precision features are multiplied in single precision.
    rtol = 1e-12 if K < second_pass.WIDE else 1e-6
    np.testing.assert_allclose(got, second._pass._torch_sums(*tensors(H), y), rtol=rtol)
