"""A run's metrics epoch by epoch: rows, tables, files; and what loggers and notebooks take."""

import csv
import math
import sys

import numpy as np
import oracles
import pytest
import torch

import fastnc
from fastnc.collapse.layer_table import LayerTable

H, Y, W, BIAS = oracles.clouds(4, 5, 40)


def filled():
    h = fastnc.History()
    for epoch in (1, 2, 10):
        m = fastnc.collapse_metrics(H / epoch, Y, W if epoch > 1 else None)
        h.add(epoch, m, test_accuracy=0.1 * epoch, unknown=None)
    return h


def test_rows_and_columns():
    h = filled()
    assert len(h) == 3 and h["epoch"] == [1, 2, 10] and h.keys()[0] == "epoch"
    assert h["margin"][0] is None and h["margin"][1] is not None and "unknown" not in h
    assert h.flat("nc/")["nc/epoch"] == 10 and repr(h).startswith("History: 3 epochs of ")
    h.add(10, {"loss": 0.5})
    assert len(h) == 3 and h["loss"] == [None, None, 0.5]
    assert [row["epoch"] for row in h] == [1, 2, 10]
    with pytest.raises(KeyError, match=r"no column 'nc9'; there are epoch, "):
        h["nc9"]
    with pytest.raises(TypeError, match=r"`epoch` must be a number; got 'one'"):
        h.add("one", {})
    with pytest.raises(TypeError, match=r"`metrics` must be metrics or a dictionary; got 3"):
        h.add(1, 3)
    assert fastnc.History().flat() == {}


def test_files_and_frames(tmp_path):
    h = filled()
    h.to_csv(tmp_path / "h.csv")
    with open(tmp_path / "h.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nc1"]) for row in rows] == h["nc1"] and rows[0]["margin"] == ""
    pd = pytest.importorskip("pandas")
    frame = h.to_pandas()
    assert list(frame.columns) == h.keys() and frame["nc1"].tolist() == h["nc1"]
    assert pd.isna(frame["margin"][0])


def test_several_layers():
    m = fastnc.collapse_metrics(H, Y)
    table = LayerTable(body=m, head=fastnc.collapse_metrics(H[:, :3], Y))
    h = fastnc.History()
    h.add(3, table)
    assert h["body/nc1"] == [m.nc1] and h["head/cdnv"] == [table["head"].cdnv]
    pytest.importorskip("pandas")
    assert table.to_pandas().loc["head", "dim"] == 3
    assert len(LayerTable().to_pandas()) == 0


def test_frames_without_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (filled(), LayerTable(body=fastnc.collapse_metrics(H, Y))):
        with pytest.raises(ImportError, match="pandas is needed for `to_pandas`: pip install pand"):
            table.to_pandas()


def test_what_loggers_and_notebooks_take():
    m = fastnc.collapse_metrics(H, Y)
    flat = m.flat("nc/")
    assert flat["nc/nc1"] == m.nc1 and "nc/margin" not in flat
    assert all(isinstance(value, float) and not math.isnan(value) for value in flat.values())
    assert len(repr(m)) < 200 and repr(m).startswith("CollapseMetrics(40 samples, 4 classes")
    html = m._repr_html_()
    assert html.count("<tr>") == 1 + len(m.as_dict()) and f"{m.nc1:.6g}" in html
    assert "at best here" not in html


def test_runs_and_optima_in_a_notebook():
    run = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=20)
    html = run._repr_html_()
    assert html.count("<tr>") == 1 + len(run.columns) and f"{run['margin'][-1]:.6g}" in html
    empty = fastnc.Trajectory({"epoch": []}, run.W, run.H, run.y, {})
    assert empty._repr_html_().count("<td>") == 1
    best = fastnc.models.weight_decay(3, 2, 4, 0.01, 0.01).optimum()
    assert f"{best.value:.9g}" in best._repr_html_() and len(repr(best)) < 200


def test_the_best_that_so_many_classes_allow():
    """K > d + 1: 0 is impossible, and the table says what is possible."""
    angles = 2 * np.pi * np.arange(6) / 6
    hexagon = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    m = fastnc.collapse_metrics(np.repeat(hexagon, 2, axis=0), np.arange(12) // 2, hexagon)
    text = str(m)
    assert "at best here" in text and "hold no simplex (K > d + 1)" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    # 1/d - 1/(K-1) = .3; the hexagon has more.
    assert ">= 0.3" in lines["equiangular_features"] and m.equiangular_features > 0.3
    # With W and H of equal norms the regular polygon attains its bound, 5/6 (1 - cos 60).
    scaled = fastnc.collapse_metrics(
        np.repeat(hexagon, 2, axis=0), np.arange(12) // 2, 2**0.5 * hexagon
    )
    assert scaled.margin_ratio == pytest.approx(5 / 12, rel=1e-12)
    assert "<= 0.4167 (known codes)" in lines["margin_ratio"]
    assert "at best here" in m._repr_html_()
    octahedron = np.vstack([np.eye(3), -np.eye(3)])
    # The code that issue after issue finds: six classes in three dimensions end at 5/6.
    assert fastnc.collapse_metrics(octahedron, np.arange(6), octahedron).margin_ratio == 5 / 6
    assert "<= 0.8333" in str(fastnc.collapse_metrics(octahedron, np.arange(6), octahedron))


@pytest.mark.parametrize(("K", "d"), [(4, 2), (5, 3), (6, 3), (6, 4), (8, 5), (9, 7)])
def test_pairs_and_single_classes_beat_vectors_of_one_length(K, d):
    from fastnc.collapse.codes import largest_margin_ratio

    pairs = K - d
    Z = np.eye(K) - 1.0 / K
    for k in range(0, 2 * pairs, 2):
        Z[k], Z[k + 1] = np.eye(K)[k] - np.eye(K)[k + 1], np.eye(K)[k + 1] - np.eye(K)[k]
    left, values, right = np.linalg.svd(Z)
    # A rank of d, and every margin is 1 or 2.
    assert np.count_nonzero(values > 1e-12) == d
    H, W = (left * np.sqrt(values))[:, :d], (right.T * np.sqrt(values))[:, :d]
    told = largest_margin_ratio(K, d)
    assert fastnc.margin_ratio(W, H, np.arange(K)) == pytest.approx(told, rel=1e-12)
    # The constraints are met to 1e-10; nothing better is found from other starts.
    found = fastnc.solve(fastnc.models.separation(K, 1, d), starts=12)
    assert (K - 1) / found.value == pytest.approx(told, rel=1e-9)
    assert told == pytest.approx((K - 1) / K, rel=1e-12) or (2 * d > K and told > (K - 1) / K)


def test_no_margin_ratio_is_told_where_the_largest_is_not_known():
    """Of a large class and small ones in a plane it may be above that of the square."""
    found = fastnc.solve(fastnc.models.seli((100, 1, 1, 1), 2), starts=4)
    m = fastnc.collapse_metrics(found.H, found.y, found.W)
    assert m.margin_ratio > 0.86 and not m.balanced
    (line,) = (line for line in str(m).splitlines() if line.startswith("margin_ratio"))
    assert "<=" not in line


@pytest.mark.parametrize(("K", "d"), [(3, 1), (4, 2), (7, 3), (20, 5)])
def test_no_code_is_below_the_least_mean_angle(K, d):
    from fastnc.collapse.codes import least_mean_angle

    rng = np.random.default_rng(0)
    bound = least_mean_angle(K, d)
    assert bound > 0 and least_mean_angle(K, K - 1) == 0
    for _ in range(200):
        assert oracles.angles(rng.standard_normal((K, d))) >= bound


def test_nc5_is_its_definition():
    rng = np.random.default_rng(0)
    other = rng.standard_normal((30, 5)) + 1.0
    means, o = np.stack([H[k == Y].mean(axis=0) for k in range(4)]), other.mean(axis=0)
    cosines = means @ o / np.linalg.norm(means, axis=1) / np.linalg.norm(o)
    known = np.abs(cosines).mean()
    assert fastnc.nc5(H, Y, other) == pytest.approx(known, rel=1e-12)
    assert fastnc.nc5(1e-80 * H, Y, 1e80 * other) == pytest.approx(known, rel=1e-12)
    # Of one sample a class, which has no deviation, numbers whose squares are none; to rounding.
    ones, twos = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 3.0]])
    for c in (1e-200, 1e200):
        assert fastnc.nc5(c * ones, [0, 1], twos / c) == pytest.approx(0.5**1.5, rel=1e-15)
    padded = np.append(Y, -100)
    rows = np.vstack([H, H[:1]])
    assert fastnc.nc5(rows, padded, other, ignore_index=-100) == pytest.approx(known, rel=1e-12)
    # A class of one sample more, which is left out of the mean.
    few = np.append(Y, 4)
    assert fastnc.nc5(rows, few, other, min_count=2) == pytest.approx(known, rel=1e-12)
    assert fastnc.nc5(rows, few, other) != pytest.approx(known, rel=1e-3)
    with pytest.raises(ValueError, match="`min_count` must leave a class; got 9999, and the larg"):
        fastnc.nc5(H, Y, other, min_count=9999)
    for bad, sentence in (
        (other[:, :3], r"`ood_features` must have 5 columns"),
        (other[:0], r"`ood_features` must not be empty"),
        (other * np.nan, r"`ood_features` must be finite; sample 0 is not"),
        (0.0 * other + 1e308, r"`ood_features` are too large: their sum overflows"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fastnc.nc5(H, Y, bad)


def test_distance_of_one_from_the_rest():
    torch = pytest.importorskip("torch")
    V = np.random.default_rng(0).standard_normal((7, 3))
    known = oracles.one_vs_rest(V)
    assert fastnc.one_vs_rest_distance(V) == pytest.approx(known, rel=1e-10)
    assert fastnc.one_vs_rest_distance(torch.from_numpy(3.0 * V)) == pytest.approx(known, rel=1e-10)
    wide = np.hstack([V, np.zeros((7, 30))])
    assert fastnc.one_vs_rest_distance(wide) == pytest.approx(known, rel=1e-10)
    assert np.isnan(fastnc.one_vs_rest_distance(np.zeros((3, 2))))
    for c in (1e-200, 1e200):
        assert fastnc.one_vs_rest_distance(c * V) == pytest.approx(known, rel=1e-10)
    with pytest.raises(ValueError, match=r"`W` must have at least 2 rows; got shape \(1, 3\)"):
        fastnc.one_vs_rest_distance(V[:1])


def test_energies_of_many_pairs(monkeypatch):
    """Tiles and, from some rows on, single precision: averages of 3e5 pairs keep six digits."""
    from fastnc.collapse import pair_energies

    C = np.random.default_rng(0).standard_normal((800, 5))
    # Two directions that nearly meet, which single precision alone would not tell apart.
    C[700] = C[3] + 1e-5
    known = oracles.energies(C)
    for single, tolerance in ((10_000, 1e-11), (2, 2e-5)):
        monkeypatch.setattr(pair_energies, "SINGLE", single)
        told = pair_energies.pair_energies(C)
        for ours, theirs in (
            ("log", "gnc2_log"), ("log_variance", "gnc2_log_variance"),
            ("distance_variance", "gnc2_distance_variance"),
        ):  # fmt: skip
            assert getattr(told, ours) == pytest.approx(known[theirs], rel=tolerance), ours


def test_numbers_of_other_libraries_are_kept_as_numbers(tmp_path):
    """A tensor would keep its graph, and `tensor(0.9)` is no number in a file."""
    h = fastnc.History()
    loss = torch.tensor(0.25, requires_grad=True)
    for epoch in np.arange(2):
        h.add(epoch, {"rate": np.float32(0.5)}, loss=loss, count=np.int64(3), one=np.ones(1))
    assert [dict(row) for row in h] == [
        {"epoch": e, "rate": 0.5, "loss": 0.25, "count": 3, "one": 1.0} for e in (0, 1)
    ]
    assert {type(value) for row in h for value in row.values()} == {int, float}
    h.to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text().splitlines()[1] == "0,0.5,0.25,3,1.0"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"accuracy": "x"}, "'accuracy' must be one number; got 'x'"),
        ({"accuracy": np.ones(2)}, "'accuracy' must be one number"),
        ({"epoch": 7}, "a name other than 'epoch'"),
        ({3: 7.0}, "a name other than 'epoch'; got 3"),
    ],
)
def test_what_is_no_named_number_is_refused(more, message):
    h = fastnc.History()
    with pytest.raises((TypeError, ValueError), match=message):
        h.add(1, more)
    assert len(h) == 0
