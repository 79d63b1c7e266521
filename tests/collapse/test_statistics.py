"""The first sweep: moments, any batches in any order, merging, ranks, states, sentences."""

import copy

import numpy as np
import oracles
import pytest

import fastnc

K, D, N = 7, 13, 101
H, Y, W, BIAS = oracles.clouds(K, D, N)
# Every order of additions of well-scaled float64 numbers agrees to some eps.
ORDER = {"rtol": 1e-12, "atol": 1e-14}


def gathered(batches, scatter="full", n_classes=K):
    s = fastnc.ClassStatistics(n_classes, D, scatter=scatter)
    for rows in batches:
        s.update(H[rows], Y[rows])
    return s


WHOLE = [np.arange(N)]


def same(a, b):
    assert np.array_equal(a.counts, b.counts)
    for name in ("means", "squares", "within"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, **ORDER)


def test_moments_are_their_definitions():
    s = gathered(WHOLE)
    X = H - np.stack([H[k == Y].mean(axis=0) for k in range(K)])[Y]
    assert np.array_equal(s.counts, np.bincount(Y)) and s.n_samples == N
    for k in range(K):
        np.testing.assert_allclose(s.means[k], H[k == Y].mean(axis=0), **ORDER)
        assert s.squares[k] == pytest.approx((X[k == Y] ** 2).sum(), rel=1e-12)
    np.testing.assert_allclose(s.within, X.T @ X, **ORDER)
    assert gathered(WHOLE, "trace").within is None


@pytest.mark.parametrize("size", [1, 2, 37, 100])
@pytest.mark.parametrize("scatter", ["full", "trace"])
def test_batches_of_any_size_in_any_order(size, scatter):
    whole = gathered(WHOLE, scatter)
    order = np.random.default_rng(size).permutation(N)
    same(gathered(np.split(order, range(size, N, size)), scatter), whole)


def test_merges_in_any_order():
    parts = np.split(np.random.default_rng(0).permutation(N), [5, 6, 40, 90])
    whole = gathered(WHOLE)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        left = gathered([])
        for p in order:
            left.merge(gathered([parts[p]]))
        same(left, whole)
    a, b, c = (gathered([parts[p]]) for p in (2, 3, 4))
    right = gathered([parts[0], parts[1]])
    b.merge(c)
    a.merge(b)
    right.merge(a)
    same(right, whole)


def test_what_is_merged_is_left_alone():
    a, b = gathered([np.arange(50)]), gathered([np.arange(50, N)])
    before = b.state_dict()
    a.merge(b)
    a.merge(b)
    assert a.n_samples == 50 + 2 * (N - 50)
    for name, value in b.state_dict().items():
        assert np.array_equal(value, before[name]), name


def test_sums_tell_what_sums_can():
    told = gathered(WHOLE).metrics(W, BIAS).as_dict()
    known = oracles.collapse(H, Y, W, BIAS)
    unknown = {
        "within_class", "nc4_agreement", "margin", "margin_ratio", "accuracy",
        "nearest_mean_accuracy",
    }  # fmt: skip
    assert {name for name, value in told.items() if value is None} == unknown
    for name in told.keys() - unknown:
        assert told[name] == pytest.approx(known[name], rel=1e-10), name
    told = gathered(WHOLE, "trace").metrics(W, BIAS).as_dict()
    assert {name for name, value in told.items() if value is None} == unknown | {"nc1"}


def test_precisions_and_libraries():
    torch = pytest.importorskip("torch")
    whole = fastnc.ClassStatistics(K, D)
    whole.update(H.astype(np.float16).astype(np.float64), Y)
    for halves in (H.astype(np.float16), torch.from_numpy(H.astype(np.float16)).requires_grad_()):
        s = fastnc.ClassStatistics(K, D)
        s.update(halves, torch.from_numpy(Y))
        # Squares of eleven-bit numbers and their sums over a class fit in float64.
        same(s, whole)


def test_state_goes_through_a_file(tmp_path):
    half = gathered([np.arange(50)])
    np.savez(tmp_path / "state.npz", **half.state_dict())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        resumed = fastnc.ClassStatistics(K, D, scatter="full")
        resumed.update(H, Y)
        resumed.load_state_dict(dict(state))
    for name, value in half.state_dict().items():
        assert np.array_equal(resumed.state_dict()[name], value), name
    resumed.update(H[50:], Y[50:])
    same(resumed, gathered(WHOLE))


def test_an_empty_batch_is_nothing():
    s = gathered(WHOLE)
    before = s.state_dict()
    s.update(H[:0], Y[:0])
    assert all(np.array_equal(before[name], v) for name, v in s.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "error", "sentence"),
    [
        ((H, Y + 1), ValueError, r"`y` must lie in 0\.\.6 .*got 7 at index \d+\. .*n_classes=8`"),
        (
            (H, Y - 1),
            ValueError,
            r"`y` must lie in 0\.\.6 .*; got -1 at index \d+\. Relabel, or pass `ig",
        ),
        ((H, Y[1:]), ValueError, r"`y` must have one label a sample \(101\); got 100"),
        ((H[:, 1:], Y), ValueError, r"`H` must have 13 columns, as the statistics have; got shape"),
        ((H * np.nan, Y), ValueError, r"`H` must be finite; got nan in sample 0, feature 0"),
        ((H * 1e200, Y), ValueError, r"`H` is too large: its squares overflow"),
        (
            (H.astype(int), Y),
            TypeError,
            r"`H` must hold floats of half, single or double .*; got int64",
        ),
        ((list(H), Y), TypeError, r"`H` must be a NumPy array or a torch tensor; got list"),
    ],
)
def test_a_bad_batch_leaves_what_was_gathered(batch, error, sentence):
    s = gathered([np.arange(50)])
    before = s.state_dict()
    with pytest.raises(error, match=sentence):
        s.update(*batch)
    assert all(np.array_equal(before[name], v) for name, v in s.state_dict().items())
    s.update(H[50:], Y[50:])
    same(s, gathered(WHOLE))


def test_other_mistakes_in_a_sentence():
    s = gathered(WHOLE)
    with pytest.raises(ValueError, match=r"`n_classes` must be an integer of at least 1; got 0"):
        fastnc.ClassStatistics(0, 3)
    with pytest.raises(ValueError, match=r"`dim` must be an integer of at least 1; got 2\.5"):
        fastnc.ClassStatistics(3, 2.5)
    with pytest.raises(ValueError, match=r"`scatter` must be 'trace' or 'full'; got 'some'"):
        fastnc.ClassStatistics(3, 2, scatter="some")
    with pytest.raises(TypeError, match=r"`other` must be ClassStatistics; got dict"):
        s.merge({})
    with pytest.raises(ValueError, match=r"must be other statistics; got these, to be counted tw"):
        s.merge(s)
    with pytest.raises(ValueError, match=r"`other` must have the same n_classes, dim and scatter"):
        s.merge(gathered(WHOLE, "trace"))
    with pytest.raises(ValueError, match=r"`state` must be of \{'n_classes': 7, .*; got \{'n_cl"):
        s.load_state_dict({})
    with pytest.raises(ValueError, match=r"`state` must hold what .*; 'squares' is missing"):
        s.load_state_dict({k: v for k, v in s.state_dict().items() if k != "squares"})
    with pytest.raises(ValueError, match=r"at least 2 classes must have samples; got none"):
        fastnc.ClassStatistics(3, 2).metrics()
    one = fastnc.ClassStatistics(1, D)
    one.update(H, Y * 0)
    with pytest.raises(ValueError, match=r"at least 2 classes must have samples; got only class 0"):
        one.metrics()


def test_reduction_needs_a_process_group():
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"`all_reduce` needs an initialised process group"):
        gathered(WHOLE).all_reduce()


def test_some_classes_are_each_named_once_and_known():
    s = fastnc.ClassStatistics(3, 1)
    s.update(np.array([[1.0], [3.0], [8.0]]), np.array([0, 0, 2]))
    assert s.of_classes([2, 0]).means.tolist() == [[8.0], [2.0]]
    for classes, message in (
        ([0, -1], r"`classes` must lie in 0..2 .*got -1 at index 1"),
        ([0, 3], r"`classes` must lie in 0..2 .*got 3 at index 1"),
        ([2, 2], r"`classes` must name each class once; got \[2, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            s.of_classes(classes)


def test_what_is_read_is_a_copy():
    """Counts that were read before a batch grew with it, and what was written there was counted."""
    s = gathered([np.arange(50)])
    counts, squares = s.counts, s.squares
    kept = counts.copy(), squares.copy()
    s.update(H[50:], Y[50:])
    assert np.array_equal(counts, kept[0]) and np.array_equal(squares, kept[1])
    for values in (s.counts, s.squares, s.means, s.within):
        values[...] = 7
    same(s, gathered(WHOLE))


def test_a_shallow_copy_is_whole():
    """An update of either moved some of both."""
    s = gathered([np.arange(50)])
    d = fastnc.ClassDeviations(gathered(WHOLE), W)
    d.update(H[:50], Y[:50])
    for one in (s, d):
        other = copy.copy(one)
        other.update(H[50:], Y[50:])
        assert (one.n_samples, other.n_samples) == (50, N)
    same(s, gathered([np.arange(50)]))


def test_what_all_ranks_hold_is_summed_once():
    """By a merge into other statistics it was forgotten, and each sample counted by every rank."""
    reduced = gathered(WHOLE)
    reduced.load_state_dict({**reduced.state_dict(), "reduced": True})
    merged = gathered([])
    merged.merge(reduced)
    second = fastnc.ClassDeviations(merged, W)
    second.load_state_dict({**second.state_dict(), "reduced": True})
    third = fastnc.ClassDeviations(merged, W)
    third.merge(second)
    for one in (reduced, merged, reduced.of_classes(np.array([0, 1])), third):
        with pytest.raises(RuntimeError, match="`all_reduce` must be called once"):
            one.all_reduce()


def test_a_merged_or_loaded_state_is_torchs_too(tmp_path):
    """Of what came from torch alone; `torch.load` refused it later."""
    torch = pytest.importorskip("torch")
    given = fastnc.ClassStatistics(3, 2)
    given.update(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3)
    merged, loaded = fastnc.ClassStatistics(3, 2), fastnc.ClassStatistics(3, 2)
    merged.merge(given)
    loaded.load_state_dict(given.state_dict())
    for some in (merged, loaded):
        torch.save(some.state_dict(), tmp_path / "s.pt")
        assert torch.load(tmp_path / "s.pt")["counts"].tolist() == [2, 2, 2]
