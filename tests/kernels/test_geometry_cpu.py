"""All metrics of one (W, H, y): against the equations, and against the two sweeps, bit by bit."""

import numpy as np
import oracles
import pytest

from fastnc import reference
from fastnc.collapse.measurement import collapse_metrics
from fastnc.collapse.metrics import NAMES
from fastnc.kernels.cpu import geometry as geometry_cpu
from fastnc.kernels.cpu.basis import basis


def geometry(W, H, y, run=geometry_cpu.geometry):
    values = np.full(geometry_cpu.N_VALUES, -7.0)
    run(W, H, y, values)
    return dict(zip(NAMES, values, strict=True))


@pytest.mark.parametrize(
    ("n_classes", "dim", "n_samples"), [(2, 1, 9), (5, 2, 50), (7, 13, 101), (10, 20, 100)]
)
def test_the_paper_s_equations(n_classes, dim, n_samples):
    H, y, W, _ = oracles.clouds(n_classes, dim, n_samples)
    told = geometry(W, H, y)
    means = reference.class_means(H, y)
    for name, value in {
        "equinorm_features": reference.equinorm(means),
        "equinorm_classifier": reference.equinorm(W),
        "within_class": reference.within_class(H, y),
        "equiangular_features": reference.equiangular(means),
        "equiangular_classifier": reference.equiangular(W),
        "self_duality": reference.self_duality(W, means),
        "nc1": reference.nc1(H, y),
        "margin": reference.neural_collapse_margin(W, H, y),
        "margin_ratio": reference.margin_ratio(W, H, y),
    }.items():
        # Both are float64 computations; some of these are zero for two classes.
        assert told[name] == pytest.approx(value, rel=1e-11, abs=1e-13), name


def test_snapshots_and_sweeps_agree():
    H, y, W, _ = oracles.clouds(7, 13, 101)
    told = geometry(W, H, y)
    measured = collapse_metrics(H, y, W)
    for name in NAMES:
        value = getattr(measured, name)
        # The order of samples may differ, and the bias of zero is added.
        assert told[name] == pytest.approx(value, rel=1e-13), name


def test_parallel_and_serial_agree():
    """Which of the two runs is a matter of the shape; the compiler may order their sums apart."""
    H, y, W, _ = oracles.clouds(40, 70, 900)
    told = geometry(W, H, y)
    assert H.size * len(W) > geometry_cpu.SERIAL_WORK
    with geometry_cpu.one_thread():
        alone = geometry(W, H, y, lambda *a: geometry_cpu._geometry_serial(geometry_cpu.DGEMM, *a))
    assert told == geometry(W, H, y)
    # Sums of at most some thousand terms of one sign, or margins of size 1 and more, in float64.
    assert told == pytest.approx(alone, rel=1e-13)


def test_one_class_alone_is_undefined():
    values = geometry(np.ones((3, 2)), np.ones((4, 2)), np.zeros(4, np.int64))
    assert all(np.isnan(value) for value in values.values())


@pytest.mark.parametrize(
    "counts", [[3, 3, 3], [1, 2, 3, 4, 100], [0, 5, 5, 7], [0, 0, 2, 9], [1, 1, 10**9], [4, 1]]
)
def test_the_separation_constant_is_a_nuclear_norm(counts):
    counts = np.array(counts)
    told = geometry_cpu.separation_constant(counts)
    # Bisection of 60 halvings, and an SVD in float64.
    assert told == pytest.approx(reference.separation_constant(counts), rel=1e-12)


@pytest.mark.parametrize(("n_classes", "dim"), [(4, 9), (4, 2), (3, 3)])
def test_directions_give_back_the_means_and_their_pseudo_inverse(n_classes, dim):
    C = np.random.default_rng(0).standard_normal((n_classes, dim))
    C -= C.mean(axis=0)
    Q, weights, A = basis(geometry_cpu.DGEMM, C)
    np.testing.assert_allclose(A @ Q, C, atol=1e-14)
    np.testing.assert_allclose(Q @ Q.T, np.eye(len(Q)), atol=1e-12)
    inverse = np.linalg.pinv(C.T @ C, rcond=1e-12)
    np.testing.assert_allclose((Q.T * weights) @ Q, inverse, rtol=1e-9, atol=1e-12)
    assert len(Q) == min(n_classes - 1, dim)


def test_directions_keep_means_that_nearly_meet():
    # The last direction is 1e-9 of the first: no part of the inverse, but of the means.
    C = np.array([[1.0, 0.0], [-1.0, 1e-9], [0.0, -1e-9]])
    Q, weights, A = basis(geometry_cpu.DGEMM, C)
    np.testing.assert_allclose(A @ Q, C, rtol=0, atol=1e-15)
    assert (weights > 0).sum() == 1
