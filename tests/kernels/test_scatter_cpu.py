"""Class moments by the kernels: against plain sums, same bits however they are run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest

from fastnc.kernels.cpu import scatter as scatter_cpu

ROOT = Path(__file__).parent.parent.parent


def moments(H, y, n_classes, run=scatter_cpu.class_moments_serial):
    order, present, starts = scatter_cpu.group(y, n_classes)
    # What is not written stays NaN and cannot pass.
    means = np.full((len(present), H.shape[1]), np.nan)
    squares = np.full(len(present), np.nan)
    run(H, order, starts, means, squares)
    return order, present, starts, means, squares


# A multiple of the unrolling, primes, one sample, one feature, and more rows than a chunk.
@pytest.mark.parametrize(
    ("n_classes", "dim", "n_samples"),
    [(4, 8, 64), (7, 13, 101), (1, 1, 1), (2, 1, 9), (3, 5, 2000)],
)
def test_moments(n_classes, dim, n_samples):
    H, y, _, _ = oracles.clouds(n_classes, dim, n_samples)
    order, present, starts, means, squares = moments(H, y, n_classes)
    assert np.array_equal(order, np.argsort(y, kind="stable"))
    assert np.array_equal(present, np.arange(n_classes))
    assert np.array_equal(np.diff(starts), np.bincount(y))
    for k in range(n_classes):
        rows = H[y == k].astype(np.longdouble)
        # Sums of up to 700 well-scaled numbers in float64.
        np.testing.assert_allclose(
            means[k], rows.mean(axis=0).astype(float), rtol=1e-13, atol=1e-15
        )
        exact = float(((rows - rows.mean(axis=0)) ** 2).sum())
        assert squares[k] == pytest.approx(exact, rel=1e-13, abs=1e-15)


def test_absent_classes_have_no_row():
    H, y, _, _ = oracles.clouds(9, 5, 60, absent=(0, 4, 8))
    _, present, _, means, _ = moments(H, y, 9)
    assert present.tolist() == [1, 2, 3, 5, 6, 7] and np.isfinite(means).all()


def test_sorted_labels_are_left_as_they_are():
    y = np.arange(40) // 10
    assert np.array_equal(scatter_cpu.group(y, 4)[0], np.arange(40))


def test_offset_single_precision_loses_nothing():
    """Mean 1e3, spread 1e-3: the means are right to some ulp of 1e3, 1e-13, the squares to
    their own digits, for an error of the mean enters them in second order.
    """
    H, y, _, _ = oracles.clouds(4, 5, 3000)
    H = (1e3 + 1e-3 * H).astype(np.float32)
    _, _, _, means, squares = moments(H, y, 4)
    for k in range(4):
        rows = H[y == k].astype(np.longdouble)
        assert np.abs(means[k] - rows.mean(axis=0)).max() < 1e-12
        exact = float(((rows - rows.mean(axis=0)) ** 2).sum())
        assert squares[k] == pytest.approx(exact, rel=1e-13)


def test_merging_is_chan_s():
    H, y, _, _ = oracles.clouds(3, 5, 60)
    counts, means, squares = np.zeros(3, np.int64), np.zeros((3, 5)), np.zeros(3)
    for rows in (slice(0, 17), slice(17, 18), slice(18, 60)):
        _, present, starts, new_means, new_squares = moments(H[rows], y[rows], 3)
        scatter_cpu.merge_moments(
            present, np.diff(starts), new_means, new_squares, counts, means, squares
        )
    _, _, _, whole_means, whole_squares = moments(H, y, 3)
    assert np.array_equal(counts, np.bincount(y))
    np.testing.assert_allclose(means, whole_means, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(squares, whole_squares, rtol=1e-13)


THREADS = """
import hashlib, numba, numpy as np, sys
sys.path.insert(0, "tests")
import oracles, fastnc
H, y, W, bias = oracles.clouds(60, 83, 3000)
for threads in (1, 2, 3, 4):
    numba.set_num_threads(threads)
    s = fastnc.ClassStatistics(60, 83)
    s.update(H, y)
    t = fastnc.ClassDeviations(s, W, bias)
    t.update(H, y)
    told = t.metrics().as_dict().values()
    bits = s.means.tobytes() + s.squares.tobytes() + np.array(list(told)).tobytes()
    print(hashlib.sha256(bits).hexdigest())
"""


def test_same_bits_on_any_number_of_threads():
    """Both sweeps and all metrics, on 1 to 4 threads and a second time in this process."""
    assert 3000 * 83 > 100_000
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NUMBA_NUM_THREADS": "4"},
        check=True,
    )
    digests = done.stdout.split()
    assert len(digests) == 4 and len(set(digests)) == 1


def test_parallel_and_serial_have_the_same_bits():
    H, y, _, _ = oracles.clouds(7, 13, 3000)
    *_, means, squares = moments(H, y, 7)
    for _ in range(2):
        *_, again, again_squares = moments(H, y, 7, scatter_cpu.class_moments)
        assert means.tobytes() == again.tobytes() and squares.tobytes() == again_squares.tobytes()
