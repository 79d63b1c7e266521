"""The second sweep: any batches, merging, states, and its sentences."""

import numpy as np
import oracles
import pytest

import fastnc
from fastnc.collapse import second_pass
from fastnc.kernels.cpu import deviations as deviations_cpu

K, D, N = 7, 13, 101
H, Y, W, BIAS = oracles.clouds(K, D, N)


def statistics(rows=slice(None)):
    s = fastnc.ClassStatistics(K, D)
    s.update(H[rows], Y[rows])
    return s


def second(batches, W=W, bias=BIAS):
    t = fastnc.ClassDeviations(statistics(), W, bias)
    for rows in batches:
        t.update(H[rows], Y[rows])
    return t


def close(a, b):
    for name, value in b.as_dict().items():
        # Other orders of additions of well-scaled float64 numbers.
        assert getattr(a, name) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("size", [1, 37, 100])
def test_batches_of_any_size_in_any_order(size):
    order = np.random.default_rng(size).permutation(N)
    told = second(np.split(order, range(size, N, size))).metrics()
    close(told, second([np.arange(N)]).metrics())


def test_merges_in_any_order():
    parts = np.split(np.random.default_rng(0).permutation(N), [5, 6, 40])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        t = second([])
        for p in order:
            t.merge(second([parts[p]]))
        close(t.metrics(), second([np.arange(N)]).metrics())


def test_states():
    half = second([np.arange(50)])
    resumed = second([])
    resumed.load_state_dict(half.state_dict())
    resumed.update(H[50:], Y[50:])
    half.update(H[50:], Y[50:])
    assert resumed.metrics() == half.metrics()


def test_a_read_only_classifier_compiles_nothing_more():
    """For Numba an array that is read-only has a type of its own."""
    whole = second([np.arange(N)])
    compiled = len(deviations_cpu.deviations.signatures)
    W_read, bias_read = W.copy(), BIAS.copy()
    W_read.flags.writeable = bias_read.flags.writeable = False
    assert second([np.arange(N)], W_read, bias_read).metrics() == whole.metrics()
    assert len(deviations_cpu.deviations.signatures) == compiled


def test_samples_of_a_class_come_together_where_means_are_many():
    """Means above 256 KB are visited class by class, fewer in the samples' own order."""
    n_classes, dim = 50, 700
    assert n_classes * dim * 8 > second_pass.RESIDENT
    H, y, W, bias = oracles.clouds(n_classes, dim, 150)
    known = oracles.collapse(H, y, W, bias)
    for name, value in fastnc.collapse_metrics(H, y, W, bias).as_dict().items():
        if name != "one_vs_rest_distance":
            assert value == pytest.approx(known[name], rel=1e-10), name


def test_ties_go_to_the_smaller_class():
    # The samples of class 2 lie half way between the means of 0 and 1, where the logits tie too.
    # That class's centred mean is zero, and has no direction.
    H = np.array([[1.0], [-1.0], [0.0], [0.0]])
    y = np.array([0, 1, 2, 2])
    W = np.array([[1.0], [-1.0], [0.0]])
    m = fastnc.collapse_metrics(H, y, W)
    # Means 1, -1, 0: the decision of h = 0 is class 0, its nearest mean is class 2.
    assert m.nc4_agreement == 0.5 and m.margin == 0.0
    # With these rows h = 0 still ties, h = 1 is decided for class 2, and only h = -1 agrees.
    assert fastnc.collapse_metrics(H, y, W[[2, 1, 0]]).nc4_agreement == 0.25


@pytest.mark.parametrize(
    ("batch", "error", "sentence"),
    [
        ((H, Y + 1), ValueError, r"`y` must lie in 0\.\.6 .*; got 7 at index"),
        ((H[:, 1:], Y), ValueError, r"`H` must have 13 columns, as the statistics have"),
        ((H * np.nan, Y), ValueError, r"`H` must be finite; got nan in sample 0, feature 0"),
    ],
)
def test_a_bad_batch_leaves_what_was_gathered(batch, error, sentence):
    t = second([np.arange(50)])
    with pytest.raises(error, match=sentence):
        t.update(*batch)
    t.update(H[50:], Y[50:])
    close(t.metrics(), second([np.arange(N)]).metrics())


def test_other_mistakes_in_a_sentence():
    t = second([np.arange(50)])
    with pytest.raises(ValueError, match=r"the second pass must see the statistics' 101 samples; "):
        t.metrics()
    with pytest.raises(TypeError, match=r"`statistics` must be ClassStatistics; got ndarray"):
        fastnc.ClassDeviations(H)
    with pytest.raises(ValueError, match=r"at least 2 classes must have samples; got none"):
        fastnc.ClassDeviations(fastnc.ClassStatistics(3, 2))
    with pytest.raises(TypeError, match=r"`other` must be ClassDeviations; got ClassStatistics"):
        t.merge(statistics())
    with pytest.raises(ValueError, match=r"must be other deviations; got these, to be counted tw"):
        t.merge(t)
    with pytest.raises(ValueError, match=r"`other` must come from the same statistics and class"):
        t.merge(second([], W=2 * W))
    with pytest.raises(ValueError, match=r"what `state_dict` gave; 'sums' is missing"):
        t.load_state_dict({"n_samples": 3})
    with pytest.raises(ValueError, match=r"`state\['sums'\]` must have shape \(9,\); got \(2,\)"):
        t.load_state_dict({"sums": [1.0, 2.0], "n_samples": 3})
    with pytest.raises(ValueError, match=r"`W` must have 7 rows; got shape \(6, 13\)"):
        second([], W=W[1:])
    unseen = fastnc.ClassDeviations(statistics(Y != 4))
    with pytest.raises(ValueError, match=r"classes that the statistics have seen; got 4 at index"):
        unseen.update(H, Y)
