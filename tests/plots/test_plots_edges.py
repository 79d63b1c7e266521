"""Figures of what is rare: no value, one snapshot, names that are formulas, mixed clocks."""

import dataclasses
import io
import itertools

import numpy as np
import pytest

import fastnc
from fastnc import Trajectories, Trajectory, plots
from fastnc.plots.many import apart

MODEL = fastnc.ULPM(3, 4, 5)


def with_columns(run, **columns):
    held = {name: run[name] for name in run.columns}
    return Trajectory({**held, **columns}, run.W, run.H, run.y, run.about)


def drawn(figure):
    """The figure, drawn: names that are broken formulas fail there."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def metrics_and_statistics(K=4):
    rng = np.random.default_rng(0)
    H, y = rng.standard_normal((10 * K, 6)), np.arange(10 * K) % K
    statistics = fastnc.ClassStatistics(K, 6)
    statistics.update(H, y)
    return fastnc.collapse_metrics(H, y), statistics


def test_what_has_no_value_is_not_zero():
    """NaN was drawn as "0 to rounding"."""
    run = fastnc.descend(MODEL, epochs=100)
    nothing = np.full(len(run), np.nan)
    panels = plots.figure2(with_columns(run, within_class=nothing, self_duality=0.0 * nothing)).axes
    assert [t.get_text() for t in panels[1].texts] == ["not defined"]
    zero = plots.figure2(with_columns(run, within_class=np.zeros(len(run)))).axes[1]
    assert [t.get_text() for t in zero.texts] == ["0 to rounding"]
    # A line across the panel is no value of it.
    peeled = plots.peeled(with_columns(run, within_class=nothing), with_columns(run))
    assert not peeled.axes[1].texts
    both = [with_columns(run, within_class=nothing)] * 2
    assert [t.get_text() for t in plots.peeled(*both).axes[1].texts] == ["not defined"]


def test_one_snapshot_is_a_point():
    """Of a run to epoch 10 all panels were empty."""
    for axes in plots.figure2(fastnc.descend(MODEL, epochs=10)).axes:
        assert all(line.get_marker() == "o" and len(line.get_xdata()) == 1 for line in axes.lines)


def test_a_ratio_above_one_is_told():
    """`1 - margin_ratio` of -0.2 was listed under "0 here"."""
    metrics, statistics = metrics_and_statistics()
    above = dataclasses.replace(metrics, margin_ratio=1.2, nc4_agreement=1.0)
    figure = plots.collapse_figure(above, statistics)
    label = figure.axes[1].get_xlabel().replace("\u00a0", " ").replace("\n", " ")
    assert "1 - margin_ratio = -0.2" in label and "0 here: 1 - nc4_agreement" in label


def test_names_with_dollars_and_underscores():
    """`$` made formulas of them, or errors; a legend leaves out what begins with `_`."""
    metrics, statistics = metrics_and_statistics()
    names = ["a$b", "_c", r"$\frac$", "$^$"]
    figure = drawn(plots.collapse_figure(metrics, statistics, names))
    assert [t.get_text().strip().replace(r"\$", "$") for t in figure.axes[0].get_xticklabels()] == (
        names
    )
    one = {"_in": metrics, "$^$": metrics}
    figure = drawn(plots.layers({"_early": one, r"$\late$": one}))
    legend = figure.axes[3].get_legend()
    told = [t.get_text().strip().replace(r"\$", "$") for t in legend.get_texts()]
    assert told == ["_early", r"$\late$"]


def test_descents_beside_flows_have_their_own_clocks():
    """All axes had the label of the last row."""
    runs = [fastnc.descend(MODEL, lr=1.0, epochs=200), fastnc.flow(MODEL, 4.0)]
    figure = plots.sweep_bands(Trajectories(runs))
    told = [axes.get_xlabel() for axes in figure.axes]
    assert told == ["epoch (log log scale)"] * 4 + ["time t (log log scale)"] * 4
    many = runs[:1] + [fastnc.flow(MODEL, 3.0, rtol=r) for r in 10.0 ** -np.arange(3.0, 12.0)]
    for axes in plots.sweep_bands(Trajectories(many)).axes[:4]:
        assert axes.get_xlabel() == "epoch (log log scale) or time t (log log scale)"


@pytest.mark.parametrize("end", [9.0, 10.5, 12.0])
def test_labels_of_powers_do_not_overlap(end):
    figure = drawn(plots.figure2(fastnc.flow(MODEL, end)))
    for axes in figure.axes:
        boxes = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
        assert len(boxes) > 3
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_long_names_of_rules_stand_within_the_figure():
    sizes = tuple(range(30, 2, -1))
    models = [fastnc.models.imbalanced(sizes[:n], 30, 0.01, 0.01) for n in (26, 27, 28)]
    runs = [fastnc.descend(model, 1.0, 20) for model in models]
    figure = drawn(plots.rules_compared(Trajectories(runs)))
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_what_tells_settings_apart():
    """Commas within a model cut it: "5), K=26, N=455" was a name."""
    text = "imbalanced(class_sizes=(9, {}), dim=6), K=2, lr={}"
    assert apart([text.format(6, 1), text.format(7, 1)]) == (
        ["class_sizes=(9, 6)", "class_sizes=(9, 7)"], ["imbalanced(dim=6), K=2, lr=1"]
    )  # fmt: skip
    rules = ["Momentum(0.1)", "Momentum(0.1, momentum=0.5)", "own.<locals>.Own(#ab)", "Adam()"]
    assert apart([f"K=2, {rule}, float64" for rule in rules])[0] == rules
    assert apart(["K=2, Own(#ab)", "K=2, Own(#cd)"]) == (["Own(#ab)", "Own(#cd)"], ["K=2"])
    assert apart(["K=2, lr=1"]) == (["K=2, lr=1"], [])


def test_titles_of_many_classes_stay_over_their_panel():
    figure = drawn(plots.collapse_figure(*metrics_and_statistics(500)))
    angles, bars = figure.axes[:2]
    title = angles.title.get_window_extent()
    assert title.x0 >= 0 and title.x1 < bars.get_window_extent().x0


def test_runs_without_what_a_table_or_a_panel_shows():
    for table in (plots.rules_summary, plots.bands_summary):
        with pytest.raises(ValueError, match=r"`runs` must hold at least one run; got none\."):
            table(Trajectories([]))
    measured = {"train_accuracy": lambda W, H, y: 0.5}
    run = fastnc.descend(MODEL, epochs=20, measure=measured)
    error = plots.figure3(run).axes[4]
    assert [t.get_text() for t in error.get_legend().get_texts()] == ["train"]


def test_exponents_are_those_of_flows_without_decay():
    """They were predicted for a flow that comes to rest."""
    flow = fastnc.flow(fastnc.models.weight_decay(4, 3, 6, 1e-7, 1e-7), 12.0)
    for draw in (plots.flow_summary, plots.long_horizon):
        with pytest.raises(ValueError, match=r"has rates: without weight decay\. Got one of weig"):
            draw(flow)


def test_one_snapshot_of_many_runs_is_a_point_too():
    """The panels were empty."""
    ends = Trajectories([fastnc.descend(MODEL, epochs=10, seed=s) for s in range(3)])
    every = Trajectories([fastnc.descend(MODEL, lr=r, epochs=10) for r in range(1, 11)])
    starts = Trajectories([fastnc.descend(MODEL, epochs=1, seed=s) for s in range(3)])
    for figure in (plots.sweep_bands(ends), plots.sweep_bands(every), plots.rules_compared(starts)):
        for axes in figure.axes[:4]:
            assert axes.lines and all(line.get_marker() == "o" for line in axes.lines)


def test_columns_with_dollars_and_titles_with_formulas():
    """A column's name ended in an error of matplotlib's parser; a title is matplotlib's text."""
    title = r"$\eta = 5$"
    run = fastnc.descend(MODEL, epochs=20, measure={r"$\frac$": lambda W, H, y: 0.5})
    drawn(plots.trend(run, [r"$\frac$"], title))
    assert drawn(plots.figure2(run, title)).get_suptitle() == title


def test_zeros_and_gaps_of_a_training():
    """Zeros were "not defined", and a line went on over a gap."""
    run = fastnc.descend(MODEL, epochs=100)
    zero = plots.figure3(with_columns(run, within_class=np.zeros(len(run)))).axes[1]
    assert [t.get_text() for t in zero.texts] == ["0 to rounding"]
    holed = run["within_class"].copy()
    holed[-3] = np.nan
    (line, *_) = plots.figure3(with_columns(run, within_class=holed)).axes[1].lines
    assert np.isnan(line.get_ydata()[-3]) and np.isfinite(line.get_ydata()[-2:]).all()


@pytest.mark.parametrize("rtol", [1e-8, 1e-3])
def test_no_curve_of_a_flow_is_cut(rtol):
    """Exponents below -1.6 and constants above 2 left their panels without a word."""
    figure = plots.long_horizon(fastnc.flow(fastnc.ULPM(5, 10, 20), 12.0, seed=1, rtol=rtol))
    for axes in (figure.axes[4], figure.axes[5], figure.axes[7]):
        low, high = axes.get_ylim()
        for line in axes.lines:
            shown = np.asarray(line.get_ydata(), float)
            assert low <= np.nanmin(shown) and np.nanmax(shown) <= high


def test_bounds_are_not_drawn_as_values_at_collapse():
    run = fastnc.descend(MODEL, epochs=100)
    ratio, bound = plots.trend(run, ["margin_ratio", "margin_ratio_max"]).axes[:2]
    assert len(ratio.lines) == 2 and len(bound.lines) == 1
