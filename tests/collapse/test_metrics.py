"""Every metric against its definition in extended precision; labels, memory maps, sentences."""

import dataclasses
import json

import numpy as np
import oracles
import pytest

import fastnc
from fastnc.collapse.metrics import FURTHER, NAMES

# Sums of N d positive terms in float64, and angles of absolute error a few eps, leave 1e-14;
# 1e-10 is what is promised. The absolute part is for metrics that are 0 at collapse.
EXACT = {"rel": 1e-10, "abs": 1e-13}

# Told by `as_dict("rhubarbwu")` alone.
OTHERS = {"gnc2_log_variance", "gnc2_distance_variance"}
SHAPES = [
    (2, 1, 9),  # the smallest of everything
    (2, 3, 17),
    (5, 2, 50),  # no simplex fits: d < K - 1
    (10, 9, 120),  # it just fits
    (7, 13, 101),  # primes
    (257, 8, 600),  # one class more than a tile of pairs
    (513, 6, 700),  # one class more than a block's scores
]


def compare(told, known, **tolerance):
    for name, value in known.items():
        if name in OTHERS or (name == "one_vs_rest_distance" and value is None):
            continue
        assert told[name] == pytest.approx(value, **tolerance), name


@pytest.mark.parametrize(("n_classes", "dim", "n_samples"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_metric_is_its_definition(n_classes, dim, n_samples, dtype):
    H, y, W, bias = oracles.clouds(n_classes, dim, n_samples, dtype=dtype)
    assert (np.diff(y) < 0).any()
    known = oracles.collapse(H, y, W, bias)
    assert set(known) == set(NAMES + FURTHER) | OTHERS
    measured = fastnc.collapse_metrics(H, y, W, bias)
    told = {name: getattr(measured, name) for name in known}
    if n_classes > 7:
        # The oracle tries every face of a hull.
        del told["one_vs_rest_distance"], known["one_vs_rest_distance"]
    compare(told, known, **EXACT)
    assert (measured.n_classes, measured.dim) == (n_classes, dim)
    assert measured.n_samples == n_samples


def test_decisions_are_told_apart():
    # Were all decisions alike, the comparison above would say nothing of NC4 or the bias.
    H, y, W, bias = oracles.clouds(7, 13, 101)
    with_bias = fastnc.collapse_metrics(H, y, W, bias)
    without = fastnc.collapse_metrics(H, y, W)
    assert 0.5 < with_bias.nc4_agreement < 1.0
    assert with_bias.margin != without.margin
    far = np.zeros(7)
    far[3] = 1e6
    assert fastnc.collapse_metrics(H, y, W, far).nc4_agreement < 0.5


def test_single_precision_products_of_many_directions():
    """From 48 directions on, float32 features are multiplied in float32, centred in float64.

    Each projection errs by about eps = 6e-8 of its sample's deviation, at random: over 300
    samples and 64 directions the mean square moves by far less than eps itself. Logits are
    products of two vectors and err by some eps of their norms.
    """
    H, y, W, bias = oracles.clouds(65, 80, 300, dtype=np.float32)
    known = oracles.collapse(H, y, W, bias)
    told = fastnc.collapse_metrics(H, y, W, bias).as_dict()
    scale = np.abs(H).max() * np.abs(W).max() * 80 * 6e-8
    for name in ("margin", "margin_ratio"):
        rough = known.pop(name)
        assert told[name] == pytest.approx(rough, abs=scale), name
    compare(told, known, rel=1e-7)
    wide = fastnc.collapse_metrics(H.astype(np.float64), y, W, bias).as_dict()
    compare(wide, oracles.collapse(H, y, W, bias), **EXACT)


def test_nearly_collapsed():
    """NC1 = 1e-14: class means are exact to eps, and a deviation of 1e-7 to eps / 1e-7 = 2e-9.

    Errors of a mean enter the squares of deviations in second order, 4e-18, but each |x_i| of
    `within_class` in first order; over 500 samples they average out.
    """
    H, y, W, bias = oracles.clouds(10, 32, 500, spread=1e-7)
    known = oracles.collapse(H, y, W, bias)
    assert known["nc1"] < 3e-14
    compare(fastnc.collapse_metrics(H, y, W, bias).as_dict(), known, **EXACT)
    assert fastnc.collapse_metrics(H, y, W, bias).nc4_agreement == known["nc4_agreement"]


def test_exactly_collapsed():
    H = np.repeat(np.eye(4), 5, axis=0)
    m = fastnc.collapse_metrics(H, np.arange(20) // 5, np.eye(4))
    for name in ("nc1", "nc1_quotient", "cdnv", "within_class"):
        assert getattr(m, name) == 0.0
    # An angle is a quotient of sums that round: a few eps of 1.
    for name in ("equiangular_features", "self_duality", "nc2_gram_features", "nc3_gram"):
        assert getattr(m, name) < 1e-14
    assert m.nc4_agreement == 1.0 and m.margin == pytest.approx(1.0, rel=1e-15)


def test_offset_single_precision():
    """Mean 1e3, spread 1e-3 in float32: an ulp is 6e-5, so the data hold two digits of a spread.

    What they do hold must come out: the metrics of these very numbers, to the float64 ulp of
    1e3 in the spread, 1e-13 / 1e-3 = 1e-10, and a few of them add up. Moving the data by half a
    float32 ulp, which nobody can tell from them, moves the metrics 1e5 times further.
    """
    rng = np.random.default_rng(0)
    H, y, W, bias = oracles.clouds(10, 32, 500)
    H = (1e3 + 1e-3 * H).astype(np.float32)
    known = oracles.collapse(H, y, W, bias)
    told = fastnc.collapse_metrics(H, y, W, bias).as_dict()
    compare(told, known, rel=1e-9)
    jitter = H.astype(np.float64) + rng.uniform(-0.5, 0.5, H.shape) * np.spacing(H)
    shifted = oracles.collapse(jitter, y, W, bias)
    assert abs(shifted["nc1"] / known["nc1"] - 1) > 1e4 * abs(told["nc1"] / known["nc1"] - 1)


def test_means_that_nearly_meet():
    """Two means 1e-7 apart in a configuration of size 1: below what a Gram matrix resolves."""
    means = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 1e-7], [-1.0, 0.0, -1e-7], [0.0, 2.0, 0.0]])
    y = np.arange(40) % 4
    H = means[y] + 1e-9 * np.random.default_rng(0).standard_normal((40, 3))
    W = means * [1.0, 1.0, 1e12]
    told = fastnc.collapse_metrics(H, y, W)
    assert told.nc4_agreement == oracles.collapse(H, y, W)["nc4_agreement"] == 1.0
    assert told.cdnv == pytest.approx(oracles.collapse(H, y, W)["cdnv"], rel=1e-8)


def test_absent_classes_stay_absent():
    H, y, W, bias = oracles.clouds(6, 9, 60, absent=(0, 3))
    told = fastnc.collapse_metrics(H, y, W, bias)
    compare(told.as_dict(), oracles.collapse(H, y, W, bias), **EXACT)
    assert told.n_classes == 4
    # Without a classifier, the classes are those that occur.
    assert told.nc1 == fastnc.collapse_metrics(H, y).nc1


def test_labels_are_any_integers_without_a_classifier():
    H, y, _, _ = oracles.clouds(5, 4, 60)
    plain = fastnc.collapse_metrics(H, y)
    for names in ([1, 2, 4, 7, 904], [0, 1, 5, 2**40, 2**62], [0, 1, 2, 3, 4]):
        assert fastnc.collapse_metrics(H, np.array(names)[y]) == plain
    assert fastnc.collapse_metrics(H, y.astype(np.int8)) == plain
    assert fastnc.collapse_metrics(H, y.astype(np.uint64)) == plain


@pytest.mark.parametrize(
    "names",
    [
        np.array([1, 127, 0, 5], np.int8),
        np.array([0, 255, 7, 128], np.uint8),
        np.array([2**63 - 2, 2**63 - 1, 0, 1]),
        np.array([0, 1, 2, 3], np.uint64) + np.uint64(2**63),
        np.array([3, 1, 2, 0], ">i4"),
    ],
    ids=str,
)
def test_labels_at_the_ends_of_their_dtype(names):
    rng = np.random.default_rng(0)
    H, y = rng.standard_normal((40, 3)), np.arange(40) % 4
    order = np.argsort(names)
    wanted = fastnc.collapse_metrics(H, np.argsort(order)[y])
    assert fastnc.collapse_metrics(H, names[y]) == wanted


def test_the_other_order_of_bytes():
    """As FITS and old HDF5 files have it, which NumPy maps as it is."""
    rng = np.random.default_rng(0)
    H, y = rng.standard_normal((40, 3), dtype=np.float32), np.arange(40) % 4
    W, bias = rng.standard_normal((4, 3)), rng.standard_normal(4)
    swapped = [x.astype(x.dtype.newbyteorder()) for x in (H, y, W, bias)]
    assert not swapped[0].dtype.isnative
    assert fastnc.collapse_metrics(*swapped) == fastnc.collapse_metrics(H, y, W, bias)


def test_without_a_classifier_its_metrics_are_none():
    H, y, _, _ = oracles.clouds(5, 4, 60)
    told = fastnc.collapse_metrics(H, y).as_dict()
    assert {name for name, value in told.items() if value is None} == {
        "equinorm_classifier", "equiangular_classifier", "self_duality", "nc2_gram_classifier",
        "nc3_gram", "nc3_distance", "nc4_agreement", "margin", "margin_ratio", "accuracy",
        "uniform_duality", "one_vs_rest_distance", "nc0",
    }  # fmt: skip


def test_half_precision_and_torch():
    torch = pytest.importorskip("torch")
    H, y, W, bias = oracles.clouds(5, 4, 60)
    for half in (torch.float16, torch.bfloat16):
        rounded = torch.from_numpy(H).to(half)
        exact = fastnc.collapse_metrics(rounded.double().numpy(), y, W, bias)
        told = fastnc.collapse_metrics(
            rounded, torch.from_numpy(y), torch.from_numpy(W), torch.from_numpy(bias)
        )
        # Float32 holds every half; what is summed is the same numbers in the same order.
        assert told == exact
    told = fastnc.collapse_metrics(torch.from_numpy(H).requires_grad_(), torch.from_numpy(y))
    assert told == fastnc.collapse_metrics(H, y)
    assert fastnc.collapse_metrics(H.astype(np.float16), y) == fastnc.collapse_metrics(
        H.astype(np.float16).astype(np.float64), y
    )


def test_memory_maps_come_in_pieces(tmp_path, monkeypatch):
    H, y, W, bias = oracles.clouds(7, 13, 501)
    np.save(tmp_path / "H.npy", H)
    mapped = np.load(tmp_path / "H.npy", mmap_mode="r")
    seen = []
    update = fastnc.ClassStatistics.update_from
    monkeypatch.setattr("fastnc.collapse.batch.BATCH_BYTES", 100 * 13 * 8)
    monkeypatch.setattr(
        fastnc.ClassStatistics,
        "update_from",
        lambda self, first, H, y: (seen.append((first, len(y))), update(self, first, H, y))[1],
    )
    done = []
    told = fastnc.collapse_metrics(mapped, y, W, bias, progress=done.append)
    assert seen == [(0, 100), (100, 100), (200, 100), (300, 100), (400, 100), (500, 1)]
    assert sum(done) == 2 * 501
    # Another order of additions: some eps of float64 on sums without cancellation.
    compare(told.as_dict(), fastnc.collapse_metrics(H, y, W, bias).as_dict(), rel=1e-12, abs=1e-14)
    H[437, 5] = np.nan
    np.save(tmp_path / "H.npy", H)
    with pytest.raises(ValueError, match=r"got nan in sample 437, feature 5"):
        fastnc.collapse_metrics(np.load(tmp_path / "H.npy", mmap_mode="r"), y)


def test_strided_and_transposed_features():
    H, y, W, bias = oracles.clouds(7, 13, 101)
    padded = np.zeros((101, 26))
    padded[:, ::2] = H
    told = fastnc.collapse_metrics(padded[:, ::2], y, W, bias)
    assert told == fastnc.collapse_metrics(np.asfortranarray(H), y, W, bias)
    assert told == fastnc.collapse_metrics(H, y, W, bias)


def test_prints_and_serialises():
    H, y, _, _ = oracles.clouds(5, 4, 60)
    m = fastnc.collapse_metrics(H, y)
    lines = str(m).splitlines()
    assert lines[0] == "60 samples, 5 classes, 4 features"
    assert [line.split()[0] for line in lines[2:]] == list(NAMES + FURTHER)
    assert f"{m.nc1:.6g}" in str(m) and "-" in lines[3]
    told = json.loads(m.json())
    assert told["nc1"] == m.nc1 and told["margin"] is None and told["n_classes"] == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.nc1 = 0.0
    infinite = dataclasses.replace(m, cdnv=float("inf"))
    assert json.loads(infinite.json())["cdnv"] is None


def test_undefined_is_nan():
    # All means coincide: there is no direction between the classes.
    m = fastnc.collapse_metrics(np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0, 0, 1, 1]))
    assert np.isnan(m.nc1) and np.isnan(m.equinorm_features)
    assert "nan" in str(m)


H, Y, W, BIAS = oracles.clouds(3, 4, 12)


def holding(value, at):
    bad = H.copy()
    bad[at] = value
    return bad


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((H.tolist(), Y), TypeError, r"`H` must be a NumPy array or a torch tensor; got list"),
        ((H[0], Y), ValueError, r"`H` must have 2 dimensions, one sample a row; got \(4,\)"),
        ((H[:0], Y[:0]), ValueError, r"`H` must not be empty; got shape \(0, 4\)"),
        ((H.astype(int), Y), TypeError, r"`H` must hold floats .*; got int64"),
        ((H.astype(complex), Y), TypeError, r"`H` must hold floats .*; got complex128"),
        ((H, Y[:-1]), ValueError, r"`y` must have one label a sample \(12\); got 11"),
        ((H, Y.reshape(3, 4)), ValueError, r"`y` must be one integer a sample; got shape \(3, 4\)"),
        ((H, np.eye(3)[Y]), ValueError, r"got shape \(12, 3\), which looks one-hot\. Pass `y\.arg"),
        ((H, Y[0]), ValueError, r"`y` must have 1 dimension; got shape \(\)"),
        ((H, Y - 1), ValueError, r"not be negative; got -1 at index \d+\. Pass `ignore_index=-1`"),
        ((H.reshape(3, 4, 4), Y), ValueError, r"`y` must have shape \(3, 4\), one label a place"),
        ((H, Y + 0.5), TypeError, r"`y` must hold integers; got float64"),
        ((H, Y * 0), ValueError, r"at least 2 classes must have samples; got only class 0"),
        ((H, Y, W[:2]), ValueError, r"`y` must lie in 0\.\.1 .*; got 2 at index \d+\. .* `W` with"),
        (
            (H, Y - 1, W),
            ValueError,
            r"`y` must lie in 0\.\.2 .*; got -1 at index \d+\. Relabel, or pass `ign",
        ),
        ((H, Y, W[:, :2]), ValueError, r"`W` must have 4 columns; got shape \(3, 2\)"),
        ((H, Y, W[0]), ValueError, r"`W` must be an array with 2 dimensions, one row a class"),
        ((H, Y, W, BIAS[:2]), ValueError, r"`bias` must have shape \(3,\); got \(2,\)"),
        ((H, Y, None, BIAS), ValueError, r"`bias` belongs to a classifier; pass its `W` too"),
        ((H, Y, W * np.nan), ValueError, r"`W` must be finite; got nan at index \(0, 0\)"),
        ((holding(np.nan, (7, 2)), Y), ValueError, r"`H` must be finite; got nan in sample 7, fe"),
        ((holding(-np.inf, (3, 0)), Y), ValueError, r"`H` must be finite; got -inf in sample 3,"),
        ((holding(1e200, (3, 0)), Y), ValueError, r"`H` is too large: its squares overflow\. Div"),
    ],
)
def test_one_sentence_for_each_mistake(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastnc.collapse_metrics(*arguments)


def test_metrics_without_a_scale_are_the_same_at_every_scale():
    """Powers of two near 1e-150 and 1e150: nothing rounds, so only what has a scale may move.

    The spread of 0.3 about means of size 1 leaves squares of 1e-302 and more, normal numbers.
    """
    H, y, W, _ = oracles.clouds(7, 13, 101)
    plain = fastnc.collapse_metrics(H, y, W).as_dict()
    sources = {s: fastnc.collapse_metrics(H, y, W).as_dict(s) for s in ("papyan", "rhubarbwu")}
    for c, of_W in [(-498, 0), (498, 0), (0, -498), (0, 498), (-498, 498), (498, -498), (480, 480)]:
        told = fastnc.collapse_metrics(H * 2.0**c, y, W * 2.0**of_W)
        for name, value in told.as_dict().items():
            if name == "margin":
                assert value == plain[name] * 2.0 ** (c + of_W)
            elif name not in ("margin_ratio", "uniform_duality", "nc0"):
                assert value == pytest.approx(plain[name], rel=1e-13), (name, c, of_W)
        for source, values in sources.items():
            for name, value in told.as_dict(source).items():
                if name == "NC3: variance of <w, m>":
                    continue
                # None is what the input cannot tell, at any scale.
                same = value if value is None else pytest.approx(value, rel=1e-13)
                assert values[name] == same, (source, name, c, of_W)
        known = oracles.collapse(H * 2.0**c, y, W * 2.0**of_W)
        assert told.margin_ratio == pytest.approx(known["margin_ratio"], rel=1e-13)


def test_features_and_classifiers_far_from_one():
    H, y, W, _ = oracles.clouds(7, 13, 101)
    plain, small = fastnc.collapse_metrics(H, y, W), fastnc.collapse_metrics(1e-80 * H, y, W)
    # A factor that is no power of two rounds every number once.
    assert small.nc2_gram_features == pytest.approx(plain.nc2_gram_features, rel=1e-12)
    tiny = fastnc.collapse_metrics(1e-160 * H, y)
    assert tiny.equinorm_features == pytest.approx(plain.equinorm_features, rel=1e-12)
    large = fastnc.collapse_metrics(H, y, 1e100 * W)
    assert large.nc3_gram == pytest.approx(plain.nc3_gram, rel=1e-12)
    assert large.equinorm_classifier == pytest.approx(plain.equinorm_classifier, rel=1e-12)


def test_no_best_ratio_is_told_beside_a_bias():
    """A class between the others is told by its bias: the ratio is above that of the best code."""
    x, y = np.array([[-1.0], [0.0], [1.0]]), np.arange(3)
    found = fastnc.collapse_metrics(x, y, x, np.array([0.0, 0.5, 0.0]))
    assert found.biased and found.margin_ratio == 0.5 and "known codes" not in found.table()
    found = fastnc.collapse_metrics(x, y, x)
    assert not found.biased and "<= 0 (known codes)" in found.table()
