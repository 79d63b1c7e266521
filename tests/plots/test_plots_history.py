"""Columns along epochs: one run as it is, several as their median and a band."""

import numpy as np
import pytest

import fastnc
from fastnc import plots


class Columns(dict):
    """The least that a history is."""


def test_one_run_is_drawn_as_it_is():
    run = Columns(epoch=np.array([0, 1, 5]), nc1=np.array([3.0, 1.0, 0.1]))
    (axes,) = plots.trend(run, ["nc1"]).axes
    assert axes.lines[0].get_xdata().tolist() == [0.0, 1.0, 5.0]
    assert axes.lines[0].get_ydata().tolist() == [3.0, 1.0, 0.1]
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert "Sigma" in axes.get_ylabel()


def test_several_runs_are_their_median_where_all_have_one():
    runs = [
        Columns(epoch=np.array([0, 1, 2]), margin=np.array([-1.0, 2.0, 3.0])),
        Columns(epoch=np.array([0, 2, 9]), margin=np.array([-3.0, 5.0, 9.0])),
        Columns(epoch=np.array([0, 2]), margin=np.array([-2.0, 4.0])),
    ]
    figure = plots.trend(runs, ["margin"], title="three seeds")
    (axes,) = figure.axes
    assert axes.lines[0].get_xdata().tolist() == [0.0, 2.0]
    assert axes.lines[0].get_ydata().tolist() == [-2.0, 4.0]
    # Negative values have no logarithm.
    assert axes.get_yscale() == "linear"
    assert "median of 3 runs" in figure.get_suptitle()


def test_rows_in_any_order():
    """An epoch that was added later had another one's value."""
    history = fastnc.History()
    for epoch in (5, 1, 3, 0):
        history.add(epoch, {"nc1": 10.0 + epoch})
    (axes,) = plots.trend(history).axes
    assert axes.lines[0].get_xdata().tolist() == [0.0, 1.0, 3.0, 5.0]
    assert axes.lines[0].get_ydata().tolist() == [10.0, 11.0, 13.0, 15.0]


def test_columns_where_none_are_named():
    rng = np.random.default_rng(0)
    H, y = rng.standard_normal((30, 4)), np.arange(30) % 3
    for W, last in ((None, "within_class"), (rng.standard_normal((3, 4)), "self_duality")):
        history = fastnc.History()
        for epoch in (1, 2):
            history.add(epoch, fastnc.collapse_metrics(H / epoch, y, W))
        names = [axes.get_title() for axes in plots.trend(history).axes]
        assert names == ["nc1", "equinorm_features", "equiangular_features", last]
    other = Columns(epoch=[0, 1], b=[1.0, 2.0], a=[3.0, 4.0])
    assert [axes.get_title() for axes in plots.trend(other).axes] == ["b", "a"]
    with pytest.raises(ValueError, match="`history` must have a column beside its time in every"):
        plots.trend([other, Columns(epoch=[0, 1], c=[1.0, 2.0])])


def test_a_flow_has_no_epochs():
    """Its times were drawn as epochs, and beside those of a descent."""
    model = fastnc.ULPM(3, 4, 5)
    flow = fastnc.flow(model, 20.0, snapshots=5)
    axes = plots.trend(flow).axes[0]
    assert axes.get_xlabel() == "log10 of the time t" and axes.get_xscale() == "linear"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), flow["log10_time"][1:])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), flow["nc1"][1:])
    with pytest.raises(ValueError, match="runs of one time; got 'log10_time' and 'epoch'"):
        plots.trend([flow, fastnc.descend(model, epochs=20)])


def test_long_runs_have_a_logarithmic_axis():
    run = Columns(epoch=np.array([0, 10, 10**6]), nc1=np.array([3.0, 1.0, 0.1]))
    assert plots.trend(run, ["nc1"]).axes[0].get_xscale() == "symlog"


def test_a_trajectory_is_a_history():
    run = fastnc.descend(fastnc.ULPM(3, 4, 5), epochs=20)
    figure = plots.trend(run, ["nc1", "margin", "cdnv", "self_duality", "log_loss"])
    figure.draw_without_rendering()
    assert len(figure.axes) == 5


def test_runs_that_cannot_be_drawn():
    run = Columns(epoch=np.array([0, 1]), nc1=np.array([3.0, 1.0]))
    with pytest.raises(ValueError, match="`history` must hold at least one run"):
        plots.trend([], ["nc1"])
    with pytest.raises(ValueError, match="'nc7' is not one of epoch, nc1"):
        plots.trend(run, ["nc7"])
    other = Columns(epoch=np.array([5]), nc1=np.array([3.0]))
    with pytest.raises(ValueError, match="must have at least one epoch in common"):
        plots.trend([run, other], ["nc1"])


def test_saved_text_stays_text(tmp_path):
    run = Columns(epoch=np.array([0, 1]), nc1=np.array([3.0, 1.0]))
    _, pdf = plots.save(plots.trend(run, ["nc1"]), tmp_path / "figure")
    assert b"/Subtype /Type0" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()


def test_names_of_classes_are_any_list():
    H, y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    metrics = fastnc.collapse_metrics(H, y)
    statistics = fastnc.ClassStatistics(2, 3)
    statistics.update(H, y)
    figure = plots.collapse_figure(metrics, statistics, ["cat", "dog"])
    figure.draw_without_rendering()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="`names` must be one for each of the 2 classes"):
        plots.collapse_figure(metrics, statistics, ["cat"])


def test_a_figure_is_of_the_samples_that_were_measured():
    """Classes that were left out were drawn, and the spread of others said to be the samples'."""
    y = np.repeat([0, 1, 2, 3, 4], [9, 2, 8, 1, 7])
    H = np.random.default_rng(0).standard_normal((27, 6))
    statistics = fastnc.ClassStatistics(5, 6)
    statistics.update(H, y)
    m = fastnc.collapse_metrics(H, y, min_count=3)
    angles, _, spreads, *_ = plots.collapse_figure(m, statistics, list("abcde")).axes
    means = np.stack([H[y == k].mean(0) for k in (0, 2, 4)])
    C = means - means.mean(0)
    C /= np.linalg.norm(C, axis=1)[:, None]
    # Cosines of three means: roundings of a few numbers of size 1.
    assert np.abs(angles.get_images()[0].get_array() - C @ C.T).max() < 1e-14
    assert [t.get_text() for t in angles.get_xticklabels()] == list("ace")
    assert "-0.5 off the diagonal" in angles.get_xlabel() and len(spreads.patches) == 3
    held = fastnc.collapse_metrics(H[::2], y[::2], about=statistics)
    title = plots.collapse_figure(held, statistics).get_suptitle()
    assert title.startswith("14 held-out samples") and "(c) of those of the class means" in title
    with pytest.raises(ValueError, match="of the same samples; got 2 classes of 6 features, and 5"):
        plots.collapse_figure(fastnc.collapse_metrics(H, y, subset=[0, 4]), statistics)


@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_bars_are_what_is_left_to_collapse(n_classes):
    rng = np.random.default_rng(0)
    y = np.arange(4 * n_classes) % n_classes
    means = rng.standard_normal((n_classes, 12))
    H, W = means[y] + 0.5 * rng.standard_normal((len(y), 12)), means + 0.1
    m, s = fastnc.collapse_metrics(H, y, W), fastnc.ClassStatistics(n_classes, 12)
    s.update(H, y)
    axes = plots.collapse_figure(m, s).axes[1]
    bars = {
        t.get_text(): bar.get_width()
        for t, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
    }
    assert bars["nc1"] == m.nc1 and min(bars.values()) > 0.0
    # Two means about their middle have one angle: what is 0 by symmetry is said, not drawn.
    said = axes.get_xlabel().replace("\n", " ")
    if n_classes == 2:
        assert "0 here:" in said and "equiangular_features" not in bars
    else:
        end = n_classes - 1
        name = f"|effective_rank / {end} - 1|"
        assert bars[name] == pytest.approx(abs(m.effective_rank / end - 1.0), rel=1e-12)
        end = -0.5 * np.log(2 * n_classes / (n_classes - 1))
        assert bars[f"|gnc2_log / {end:.4g} - 1|"] == pytest.approx(abs(m.gnc2_log / end - 1.0))
    if m.nc4_agreement < 1.0:
        assert bars["1 - nc4_agreement"] == 1.0 - m.nc4_agreement
    assert f"margin {m.margin:.4g}" in said and "at collapse" in said
    assert not {"effective_rank", "gnc2_log", "accuracy", "nc4_agreement"} & set(bars)


def test_axes_are_logarithmic_where_a_metric_falls_to_zero():
    run = Columns(
        epoch=np.array([0, 5]), nc1=np.array([3.0, 1.0]), gnc2_log=np.array([-0.2, -0.4]),
        effective_rank=np.array([2.0, 8.0]), test_accuracy=np.array([0.5, 0.9]),
    )  # fmt: skip
    names = ["nc1", "gnc2_log", "effective_rank", "test_accuracy"]
    axes = plots.trend(run, names).axes
    assert [a.get_yscale() for a in axes] == ["log", "linear", "linear", "linear"]
    assert all(a.get_ylabel() for a in axes)
    # A share has its end drawn in.
    assert [len(a.lines) for a in axes] == [1, 1, 1, 2]


def test_columns_that_are_measured_at_some_epochs():
    """Their panel was empty; where one run alone had a number, it was the median of all."""
    histories = []
    for seed in range(3):
        history = fastnc.History()
        histories.append(history)
        for epoch in range(1, 21):
            history.add(epoch, loss=1.0 / epoch)
            if epoch % 5 == 0 and (seed or epoch != 5):
                history.add(epoch, nc1=(seed + 1.0) / epoch)
            if epoch % 2 == seed % 2:
                history.add(epoch, cdnv=1.0)
    figure = plots.trend(histories, ["loss", "nc1", "cdnv"])
    loss, nc1, cdnv = figure.axes
    assert loss.lines[0].get_xdata().tolist() == list(range(1, 21))
    assert nc1.lines[0].get_xdata().tolist() == [10, 15, 20]
    np.testing.assert_allclose(nc1.lines[0].get_ydata(), [0.2, 2 / 15, 0.1], rtol=1e-15)
    assert nc1.lines[0].get_marker() == "." and not cdnv.lines
    assert cdnv.texts[0].get_text() == "no epoch at which all runs have it"
