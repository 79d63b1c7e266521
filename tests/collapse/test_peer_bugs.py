"""What went wrong in packages people use today, one test each."""

import subprocess
import sys

import numpy as np
import oracles
import pytest

import fastnc


def test_a_batch_of_one_sample():
    H, y, W, bias = oracles.clouds(4, 5, 40)
    s = fastnc.ClassStatistics(4, 5, scatter="full")
    for i in range(40):
        s.update(H[i : i + 1], y[i : i + 1])
    t = fastnc.ClassDeviations(s, W, bias)
    for i in range(40):
        t.update(H[i : i + 1], y[i : i + 1])
    known = oracles.collapse(H, y, W, bias)
    for name, value in t.metrics().as_dict().items():
        # Forty merges of well-scaled float64 numbers.
        assert value == pytest.approx(known[name], rel=1e-12), name


def test_an_absent_class_is_not_a_mean_of_zero():
    H, y, _, _ = oracles.clouds(4, 5, 40, offset=10.0)
    s = fastnc.ClassStatistics(9, 5)
    s.update(H, y + 3)
    assert np.isnan(s.means[[0, 1, 2, 7, 8]]).all() and (s.counts[[0, 8]] == 0).all()
    few = fastnc.ClassStatistics(4, 5)
    few.update(H, y)
    assert s.metrics() == few.metrics()


def test_one_class_more_than_a_tile():
    # 257 classes make a tile of 256 and one of a single row, 513 a single column too.
    for n_classes in (257, 513):
        H, y, W, _ = oracles.clouds(n_classes, 6, 2 * n_classes)
        told, known = fastnc.collapse_metrics(H, y, W), oracles.collapse(H, y, W)
        assert told.equiangular_features == pytest.approx(known["equiangular_features"], rel=1e-12)
        assert told.nc3_gram == pytest.approx(known["nc3_gram"], rel=1e-12)


def test_the_weighted_mean_is_there():
    H, y, W, bias = oracles.clouds(4, 5, 40)
    s = fastnc.ClassStatistics(4, 5)
    s.update(H, y)
    weighted = s.counts @ s.means / s.n_samples
    np.testing.assert_allclose(weighted, H.mean(axis=0), rtol=1e-13, atol=1e-15)
    balance = np.linalg.norm(W @ H.mean(axis=0) + bias)
    assert s.metrics(W, bias).bias_balance == pytest.approx(balance, rel=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 4, 5])
def test_fewer_features_than_a_simplex_needs(dim):
    H, y, W, bias = oracles.clouds(6, dim, 60)
    known = oracles.collapse(H, y, W, bias)
    assert fastnc.collapse_metrics(H, y, W, bias).nc1 == pytest.approx(known["nc1"], rel=1e-10)


def test_statistics_do_not_change_with_the_array_they_were_given():
    H, y, _, _ = oracles.clouds(4, 5, 40)
    s = fastnc.ClassStatistics(4, 5, scatter="full")
    s.update(H, y)
    t = fastnc.ClassDeviations(s)
    t.update(H, y)
    before, after = s.state_dict(), t.metrics()
    H[:] = 7.0
    y[:] = 0
    s.means[:] = 0.0
    s.state_dict()["means"][:] = 0.0
    for name, value in s.state_dict().items():
        assert np.array_equal(value, before[name]), name
    assert t.metrics() == after


def test_variance_of_single_precision_is_never_negative():
    """E|h|^2 - |m|^2 in float32 at mean 100 and spread 1e-3 is rounding, of either sign."""
    rng = np.random.default_rng(0)
    H = (100.0 + 1e-3 * rng.standard_normal((4000, 8))).astype(np.float32)
    y = np.arange(4000) % 2
    naive = (H**2).mean(axis=0) - H.mean(axis=0) ** 2
    assert (naive < 0).any()
    s = fastnc.ClassStatistics(2, 8, scatter="full")
    s.update(H, y)
    known = [((H[y == k] - H[y == k].mean(0, np.float64)) ** 2).sum() for k in (0, 1)]
    np.testing.assert_allclose(s.squares, known, rtol=1e-10)
    assert (np.linalg.eigvalsh(s.within) > 0).all()


def test_decisions_count_the_bias():
    H = np.array([[1.0], [2.0], [-1.0], [-2.0]])
    y = np.array([0, 0, 1, 1])
    W = np.array([[1.0], [-1.0]])
    assert fastnc.collapse_metrics(H, y, W).nc4_agreement == 1.0
    shifted = fastnc.collapse_metrics(H, y, W, np.array([0.0, 3.0]))
    # The bias moves the first sample, and only that, to the other class.
    assert shifted.nc4_agreement == 0.75 and shifted.margin == -1.0


def test_labels_need_neither_order_nor_an_unbroken_range():
    H, y, _, _ = oracles.clouds(4, 5, 40)
    order = np.argsort(y, kind="stable")
    assert (order != np.arange(40)).any()
    told = fastnc.collapse_metrics(H, y).as_dict()
    names = np.array([3, 5, 6, 1000])
    for name, value in fastnc.collapse_metrics(H[order], names[y[order]]).as_dict().items():
        if value is None:
            assert told[name] is None
        else:
            # The same numbers added in another order.
            assert value == pytest.approx(told[name], rel=1e-12), name


def test_no_matrix_of_features_by_features():
    """At d = 20,000 a d x d matrix takes 3.2 GB, and its pseudo-inverse an hour.

    In a process of its own: the peak of one that has done other things may be higher already.
    """
    pytest.importorskip("resource")
    code = """
import resource, sys
import numpy as np
import fastnc
def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
fastnc.collapse_metrics(np.eye(4), np.arange(4) % 2)
H, y = np.random.default_rng(0).standard_normal((40, 20_000)), np.arange(40) % 4
before = peak()
assert fastnc.collapse_metrics(H, y).nc1 > 0
print(before, peak())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    # A matrix would show: what was there before it is smaller.
    assert before < 20_000**2 * 8 and after - before < 500e6
