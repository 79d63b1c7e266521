"""Samples that are not like the others: held out, ignored, of small classes, of a subset."""

import numpy as np
import oracles
import pytest

import fastnc

K, D, N = 6, 9, 200
H, Y, W, BIAS = oracles.clouds(K, D, N + 90, spread=0.9)
TEST, Y_TEST, H, Y = H[N:], Y[N:], H[:N], Y[:N]
# Sums of some hundred terms in another order; angles and quotients of them.
CLOSE = {"rel": 1e-11, "abs": 1e-13}


def statistics(H=H, y=Y, n_classes=K, **more):
    s = fastnc.ClassStatistics(n_classes, H.shape[-1], **more)
    s.update(H, y)
    return s


def same(ours, theirs, but=()):
    for name, value in theirs.as_dict().items():
        if name not in but:
            wanted = value if value is None else pytest.approx(value, **CLOSE)
            assert getattr(ours, name) == wanted, name


def test_held_out_samples_about_the_means_of_others():
    means = np.stack([H[k == Y].mean(axis=0) for k in range(K)])
    known = oracles.held_out(TEST, Y_TEST, means, W, BIAS)
    assert 0.3 < known["nearest_mean_accuracy"] <= 1.0
    told = fastnc.collapse_metrics(TEST, Y_TEST, W, BIAS, about=statistics())
    for name, value in known.items():
        assert getattr(told, name) == pytest.approx(value, **CLOSE), name
    assert told.held_out and told.n_samples == 90 and "held-out" in repr(told)
    # What is of the means and the classifier alone does not change.
    inside = fastnc.collapse_metrics(H, Y, W, BIAS)
    same(told, inside, but=known)
    assert abs(told.cdnv / inside.cdnv - 1) > 1e-3


def test_held_out_batches_merges_and_states():
    whole = fastnc.collapse_metrics(TEST, Y_TEST, W, BIAS, about=statistics())
    s = statistics()
    parts = [fastnc.ClassDeviations(s, W, BIAS, held_out=True) for _ in range(2)]
    parts[0].update(TEST[:40], Y_TEST[:40])
    parts[1].update(TEST[40:], Y_TEST[40:])
    resumed = fastnc.ClassDeviations(s, W, BIAS, held_out=True)
    resumed.load_state_dict(parts[0].state_dict())
    resumed.merge(parts[1])
    same(resumed.metrics(), whole)
    with pytest.raises(ValueError, match=r"no held-out sample was given"):
        fastnc.ClassDeviations(s, held_out=True).metrics()
    with pytest.raises(ValueError, match=r"`other` must come from the same statistics"):
        resumed.merge(fastnc.ClassDeviations(s, W, BIAS))


def test_held_out_samples_of_some_classes():
    """CDNV is over the pairs of classes that have samples; a class never seen is refused."""
    some = Y_TEST < 3
    told = fastnc.collapse_metrics(TEST[some], Y_TEST[some], about=statistics())
    means = np.stack([H[k == Y].mean(axis=0) for k in range(3)])
    v = [((TEST[k == Y_TEST] - means[k]) ** 2).sum(axis=1).mean() for k in range(3)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    known = np.mean([(v[a] + v[b]) / (2 * ((means[a] - means[b]) ** 2).sum()) for a, b in pairs])
    assert told.cdnv == pytest.approx(known, **CLOSE)
    with pytest.raises(ValueError, match=r"have seen; got [45] at .*, or leave these out"):
        fastnc.collapse_metrics(TEST, Y_TEST, about=statistics(H[Y < 4], Y[Y < 4]))


def test_nearest_means_of_held_out_samples_where_there_are_many():
    """Beyond 48 directions only who asks for decisions pays for them."""
    H, y, _, _ = oracles.clouds(60, 70, 700, spread=1.5)
    H, y, other, labels = H[:500], y[:500], H[500:], y[500:]
    assert fastnc.collapse_metrics(H, y).nearest_mean_accuracy is None
    means = np.stack([H[k == y].mean(axis=0) for k in range(60)])
    told = fastnc.collapse_metrics(other, labels, about=statistics(H, y, 60))
    known = (oracles.nearest(other, means) == labels).mean()
    assert told.nearest_mean_accuracy == known and 0.2 < known < 1.0


def test_ignored_samples_are_not_there():
    rng = np.random.default_rng(0)
    keep = rng.random(N) < 0.7
    y = np.where(keep, Y, -100)
    # Nobody reads them: an ignored sample may hold anything.
    dirty = np.where(keep[:, None], H, np.nan)
    plain = fastnc.collapse_metrics(H[keep], Y[keep], W, BIAS)
    told = fastnc.collapse_metrics(dirty, y, W, BIAS, ignore_index=-100)
    same(told, plain)
    assert told.n_ignored == N - keep.sum() > 30 and told.n_samples == keep.sum()
    assert f"ignored: {told.n_ignored} samples" in str(told)
    same(
        fastnc.collapse_metrics(H, y, ignore_index=-100), fastnc.collapse_metrics(H[keep], Y[keep])
    )
    s = fastnc.ClassStatistics(K, D, scatter="full", ignore_index=-100)
    for rows in np.split(np.arange(N), [3, 50, 51]):
        s.update(dirty[rows], y[rows])
    clean = statistics(H[keep], Y[keep], scatter="full")
    np.testing.assert_allclose(s.within, clean.within, rtol=1e-11, atol=1e-12)
    assert s.n_ignored == told.n_ignored
    t = fastnc.ClassDeviations(s, W, BIAS)
    t.update(dirty, y)
    same(t.metrics(), plain)
    s.update(dirty[:5], np.full(5, -100))
    assert s.n_ignored == told.n_ignored + 5


def test_a_negative_label_is_no_class():
    """Without a classifier -100 was a third class, with one the way out was `more rows`."""
    y = np.array([0, 0, 1, 1, -100, -100])
    x = np.random.default_rng(0).standard_normal((6, 3))
    assert fastnc.collapse_metrics(x, y, ignore_index=-100).n_classes == 2
    with pytest.raises(
        ValueError, match=r"must not be negative; got -100 at index 4. Pass `ignore"
    ):
        fastnc.collapse_metrics(x, y)
    with pytest.raises(
        ValueError, match=r"got -100 at index 4\. Relabel, or pass `ignore_index=-10"
    ):
        fastnc.collapse_metrics(x, y, W[:2, :3])
    with pytest.raises(ValueError, match=r"got -7 at index 0"):
        fastnc.collapse_metrics(x, np.where(y == 0, -7, y), ignore_index=-100)
    with pytest.raises(TypeError, match=r"`ignore_index` must be an integer or None; got 1\.5"):
        fastnc.collapse_metrics(x, y, ignore_index=1.5)


def test_classes_too_small_to_have_a_spread():
    """100 singletons beside 100 classes of 50 halved CDNV without a word."""
    rng = np.random.default_rng(1)
    means = rng.standard_normal((200, 20))
    y = np.concatenate([np.repeat(np.arange(100), 50), np.arange(100, 200)])
    H = means[y] + rng.standard_normal((len(y), 20))
    large = y < 100
    alone = fastnc.collapse_metrics(H[large], y[large])
    told = fastnc.collapse_metrics(H, y, min_count=2)
    same(told, alone)
    assert told.n_left_out == 100 and "100 classes with too few samples" in str(told)
    everything = fastnc.collapse_metrics(H, y)
    assert everything.cdnv < 0.6 * alone.cdnv and everything.n_single == 100
    assert "one sample in 100 of 200 classes" in str(everything)
    same(statistics(H, y, 200).metrics(min_count=2), alone, but={"within_class", "nc1"} | DECIDED)
    with pytest.raises(ValueError, match=r"at least 2 classes .* none of at least `min_count=9"):
        fastnc.collapse_metrics(H, y, min_count=99)
    with pytest.raises(ValueError, match=r"`min_count` must be an integer of at least 1; got 0"):
        fastnc.collapse_metrics(H, y, min_count=0)


DECIDED = {"nearest_mean_accuracy", "accuracy", "nc4_agreement", "margin", "margin_ratio"}


def test_one_sample_a_class_has_no_spread():
    told = fastnc.collapse_metrics(H[:4], np.arange(4))
    assert all(getattr(told, name) is None for name in ("nc1", "nc1_quotient", "cdnv"))
    assert told.within_class is None and told.equinorm_features is not None
    assert "no more samples (4) than features (9)" in str(told)
    held = fastnc.collapse_metrics(H[:4], np.arange(4), about=statistics())
    assert held.nc1 > 0


def test_a_subset_is_measured_as_if_it_were_all():
    classes = [1, 4, 5]
    some = np.isin(Y, classes)
    place = np.searchsorted(classes, Y[some])
    alone = fastnc.collapse_metrics(H[some], place, W[classes], BIAS[classes])
    same(fastnc.collapse_metrics(H, Y, W, BIAS, subset=classes), alone)
    bare = fastnc.collapse_metrics(H[some], place)
    same(fastnc.collapse_metrics(H, Y * 10 + 3, subset=np.array([13, 43, 53])), bare)
    held = fastnc.collapse_metrics(TEST, Y_TEST, about=statistics(), subset=classes)
    t = np.isin(Y_TEST, classes)
    about = statistics(H[some], place, 3)
    same(held, fastnc.collapse_metrics(TEST[t], np.searchsorted(classes, Y_TEST[t]), about=about))
    with pytest.raises(ValueError, match=r"`subset` must name at least 2 classes by integers"):
        fastnc.collapse_metrics(H, Y, subset=[1])
    with pytest.raises(ValueError, match=r"must name classes that there are; got 9, which is no"):
        fastnc.collapse_metrics(H, Y, subset=[1, 9])


def test_tokens_and_columns_of_labels():
    tokens, labels = H.reshape(4, 50, D), Y.reshape(4, 50)
    plain = fastnc.collapse_metrics(H, Y, W, BIAS)
    assert fastnc.collapse_metrics(tokens, labels, W, BIAS) == plain
    assert fastnc.collapse_metrics(H, Y[:, None], W, BIAS) == plain
    assert np.array_equal(statistics(tokens, labels).means, statistics().means)


def test_a_binary_head_is_the_rows_zero_and_w():
    two = Y < 2
    H2, y2, w, b = H[two], Y[two], W[:1], BIAS[:1]
    rows = np.vstack([np.zeros(D), w])
    known = fastnc.collapse_metrics(H2, y2, rows, np.array([0.0, b[0]]))
    # The row of zeros has no direction.
    same(fastnc.collapse_metrics(H2, y2, w, b), known, but={"one_vs_rest_distance"})
    decided = (H2 @ w[0] + b[0] > 0).astype(int)
    assert known.accuracy == (decided == y2).mean()
    assert statistics(H2, y2, 2).metrics(w, b).nc0 == known.nc0
    with pytest.raises(ValueError, match=r"`y` must lie in 0\.\.1"):
        fastnc.collapse_metrics(H, Y, w)


def test_about_that_does_not_fit():
    with pytest.raises(TypeError, match=r"`about` must be ClassStatistics; got ndarray"):
        fastnc.collapse_metrics(H, Y, about=H)
    with pytest.raises(
        ValueError, match=r"`about` must be of 6 classes and 9 features; got 7 and 9"
    ):
        fastnc.collapse_metrics(H, Y, W, about=statistics(n_classes=7))
    with pytest.raises(ValueError, match=r"Relabel, or statistics of more classes"):
        fastnc.collapse_metrics(H, Y + 1, about=statistics())
