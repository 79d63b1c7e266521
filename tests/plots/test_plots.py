"""Figures and tables of sizes at which a quantity is zero throughout: drawn, without a warning."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

import fastnc
from fastnc import plots
from fastnc.plots import many
from fastnc.plots._style import settings


@pytest.mark.parametrize("sizes", [(2, 3, 2), (3, 1, 3), (3, 2, 2)])
def test_what_is_zero_throughout(sizes):
    # One sample a class has no variation; two class means and two rows have one norm each.
    model = fastnc.ULPM(*sizes)
    flow = fastnc.flow(model, 100.0, snapshots=10)
    descent = fastnc.descend(model, epochs=300)
    runs = fastnc.sweep(model, epochs=30, seeds=range(2))
    figures = [
        plots.long_horizon(flow), plots.missing_margin(flow), plots.figure2(flow),
        plots.figure2(descent), plots.figure3(descent), plots.sweep_bands(runs),
    ]  # fmt: skip
    for figure in figures:
        figure.draw_without_rendering()
    assert plots.summary(flow) and plots.bands_summary(runs)
    if sizes[1] == 1:
        assert (flow["within_class"] == 0.0).all()
        within = figures[2].axes[1]
        assert within.get_yscale() == "linear" and (within.lines[0].get_ydata() == 0.0).all()
    table = plots.flow_summary(flow).splitlines()
    # A column that is zero has no exponent, the others have theirs.
    zero = [line.split()[0] for line in table if " zero" in line]
    expected = {(2, 3, 2): "equinorm_features", (3, 1, 3): "within_class"}.get(sizes)
    assert expected in zero if expected else zero == []
    assert expected is None or any(line.startswith("1 - beta") for line in table)


def test_bands_of_two_classes_beside_more():
    """A column of panels shares its axis: linear for two classes, it cannot be for the others."""
    models = [fastnc.ULPM(2, 3, 2), fastnc.ULPM(3, 3, 3)]
    figure = plots.sweep_bands(fastnc.sweep(models, epochs=30, seeds=range(2)))
    figure.draw_without_rendering()
    two, three = figure.axes[0], figure.axes[4]
    assert two.get_yscale() == three.get_yscale() == "log"
    assert two.texts[0].get_text() == "0 to rounding" and not three.texts


def test_settings_without_a_row_of_their_own():
    """More than 8, or 10 rules: medians, in the colours of a bar that names every second, ...."""
    rates = [float(f"{0.1 + 0.05 * i:.2f}") for i in range(30)]
    runs = fastnc.sweep(fastnc.ULPM(3, 2, 4), lr=rates, epochs=30, seeds=range(2))
    for draw, per_panel in ((plots.sweep_bands, (60, 30, 60, 30)), (plots.rules_compared, (30,))):
        figure = draw(runs)
        figure.draw_without_rendering()
        *panels, bar = figure.axes
        names = [f"lr={rate:g}" for rate in rates]
        if draw is plots.rules_compared:
            assert {len(axes.lines) for axes in panels} == {30} and not panels[0].get_legend()
        else:
            assert tuple(len(axes.lines) for axes in panels) == per_panel
        assert [text.get_text() for text in bar.get_yticklabels()] == names[::2]
        # The bar's colours are those of the lines, from the first setting on.
        drawn = [line.get_color() for line in panels[1].lines]
        (steps,) = [c for c in bar.collections if c.get_array() is not None]
        mapped = steps.cmap(steps.norm(steps.get_array().ravel()))
        np.testing.assert_allclose(mapped, drawn)
    # A line is the median of its setting's runs.
    x, median = panels[1].lines[7].get_data()
    two = runs[14:16]
    np.testing.assert_array_equal(x, two.longest["epoch"][1:])
    np.testing.assert_array_equal(median, 1.0 - two.quantiles("margin_ratio", 0.5)[0, 1:])


def test_names_that_matplotlib_takes_for_something_else():
    """A legend left out what begins with `_`, and a `$` began a formula."""
    labels, _ = many.apart(["K=3, _Mine(1)", "K=3, a$b$_c"])
    assert labels == [" _Mine(1)", r"a\$b\$_c"]
    axes = Figure().subplots()
    for label in labels:
        axes.plot([0, 1], label=label)
    assert len(axes.legend().get_texts()) == 2
    axes.figure.draw_without_rendering()


def test_a_long_name_is_cut():
    labels, shared = many.apart(["K=3, lr=1, " + "x" * 60, "K=3, lr=2, y"])
    assert shared == ["K=3"] and labels == ["lr=1, " + "x" * 60, "lr=2, y"]
    assert many.apart(["K=3, lr=1"]) == (["K=3, lr=1"], [])
    figure = Figure()
    many.name_bar(figure, [figure.subplots()], labels)
    cut, whole = figure.axes[1].get_yticklabels()
    assert len(cut.get_text()) == 48 and cut.get_text().endswith("x...")
    assert whole.get_text() == "lr=2, y"


def test_cells_of_a_table_do_not_run_together():
    runs = fastnc.sweep(fastnc.ULPM(2, 10, 1), epochs=20, seeds=range(3))
    rows = plots.bands_summary(runs).splitlines()[2:]
    cells = [[float(x) for x in row.replace("[", " ").split("]")[0].replace(",", " ").split()[1:]]
             for row in rows]  # fmt: skip
    assert all(len(row) == 3 for row in cells) and np.isfinite(cells).all()
    assert all(row.count("]") == row.count("]  ") + 1 for row in rows)


def test_times_have_names():
    """The paper's figure ended at t = 1e5 on an axis of lr * epoch, of which it has 5e5."""
    from matplotlib.patches import Rectangle

    model = fastnc.ULPM(3, 2, 4)
    flow, descent = fastnc.flow(model, 20.0, snapshots=5), fastnc.descend(model, epochs=200)
    figure = plots.long_horizon(flow, descent)
    (shade,) = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    assert shade.get_x() + shade.get_width() == pytest.approx(np.log10(5.0 * 100_000))
    assert r"t = \mathrm{lr} \cdot \mathrm{epoch}" in figure.axes[-1].get_xlabel()
    assert plots.summary(flow).split()[0] == "t" and plots.summary(descent).split()[0] == "epoch"
    assert "epoch" in plots.figure2(descent).axes[-1].get_xlabel()
    # `at` asks by that same clock.
    assert descent.at("epoch", np.log10(200.0)) == 200


def test_titles_tell_all_that_was_run():
    """Two runs that differ in anything but their snapshots have different titles."""
    model, R = fastnc.ULPM(3, 2, 4), fastnc.rules
    runs = [
        fastnc.descend(of, epochs=20, **options)
        for of, options in (
            (model, {}), (model, {"seed": 1}), (model, {"lr": 1.0}), (model, {"lr": (1.0, 2.0)}),
            (model, {"rule": R.Adam(1e-2)}), (model, {"rule": R.Momentum(R.Cosine(1.0, 20))}),
            (model, {"batch_size": 2}), (model, {"batch_size": 2, "replacement": True}),
            (model, {"noise": 1e-3}), (model, {"label_noise": 0.1}), (model, {"freeze": "W"}),
            (model, {"schedule": "loss-scaled"}), (model, {"dtype": "float32"}),
            (fastnc.ULPM(3, 3, 4), {}), (fastnc.ULPM(3, dim=4, labels=[0, 0, 0, 0, 1, 2]), {}),
            (fastnc.ULPM(3, 2, 4, loss="focal"), {}),
        )
    ]  # fmt: skip
    for draw in (plots.figure2, plots.figure3):
        titles = [draw(run).get_suptitle() for run in runs]
        assert len(set(titles)) == len(runs), titles
    assert plots.figure2(runs[0]).get_suptitle() == "K=3, N=6, d=4, lr=5, float64, seed 0"
    flow = fastnc.flow(model, 20.0, snapshots=5)
    for draw in (plots.long_horizon, plots.missing_margin):
        assert draw(flow).get_suptitle() == "K=3, N=6, d=4, flow, seed 0"
    # Of one rule there is nothing to be told apart, and no empty place before it.
    alone = plots.rules_compared(fastnc.sweep(model, epochs=20, seeds=range(2)))
    assert alone.get_suptitle() == "2 runs each: medians, and bands of half of the runs"
    assert alone.axes[0].get_legend().texts[0].get_text() == "K=3, N=6, d=4, lr=5, float64"


def test_names_of_rules_and_bars_are_not_cut_off():
    """Beside a row, and below a panel: within the figure, and no line ends within a name."""
    R = fastnc.rules
    rules = [R.Adam(1e-2, betas=(0.8, 0.9)), R.Momentum(R.Cosine(1.0, 100), nesterov=True)]
    figure = plots.sweep_bands(
        fastnc.sweep(fastnc.ULPM(4, 3, 5), epochs=20, seeds=[0], rules=rules)
    )
    H = np.concatenate([5.0 * np.eye(4), 5.0 * np.eye(4) + 1e-2])
    y = np.arange(8) % 4
    statistics = fastnc.ClassStatistics(4, 4)
    statistics.update(H, y)
    metrics = fastnc.collapse_metrics(H, y, np.eye(4))
    for drawn in (figure, plots.collapse_figure(metrics, statistics)):
        drawn.draw_without_rendering()
        for axes in drawn.axes:
            for label in (axes.xaxis.label, axes.yaxis.label):
                box = label.get_window_extent()
                assert min(box.x0, box.y0) >= 0, label.get_text()
                assert box.x1 <= drawn.bbox.x1 and box.y1 <= drawn.bbox.y1, label.get_text()
    below = drawn.axes[1].get_xlabel().splitlines()
    assert below and not any(line.endswith(("1 -", "/")) for line in below)


def test_values_that_differ_in_their_rounding_alone():
    """Their logarithmic axis had no length, and its scale was 1 / 0."""
    run = fastnc.descend(fastnc.ULPM(3, 2, 4), lr=1e-17, epochs=20)
    run._columns["within_class"] = 0.3 + 1e-16 * (np.arange(len(run)) % 2)
    assert len(set(run["within_class"])) == 2
    for draw in (plots.figure2, plots.figure3):
        figure = draw(run)
        figure.draw_without_rendering()
        low, high = figure.axes[1].get_ylim()
        assert low < 0.2 and high > 0.5


def test_a_long_flow_of_few_dimensions_shows_no_rounding():
    """With d < K nothing freezes: `within_class` falls below what its means are rounded to."""
    flow = fastnc.flow(fastnc.ULPM(4, 2, 2), 100.0, snapshots=10)
    assert ((flow["within_class"] > 0.0) & (flow["within_class"] < 1e-13)).any()
    figure = plots.long_horizon(flow)
    figure.draw_without_rendering()
    drawn = figure.axes[1].lines[0].get_ydata()
    assert drawn[drawn > 0.0].min() > 1e-13
    assert figure.axes[5].texts[0].get_text().startswith("none is known: they need\n")
    # Of few dimensions the second line had no name, of single samples a name stood for no line.
    named = [text.get_text() for text in figure.axes[4].get_legend().get_texts()]
    assert named == ["within class", "all others"]
    single = plots.long_horizon(fastnc.flow(fastnc.ULPM(3, 1, 4), 20.0, snapshots=5)).axes[4]
    assert [text.get_text() for text in single.get_legend().get_texts()] == ["all others"]
    nothing = plots.long_horizon(fastnc.flow(fastnc.ULPM(2, 1, 1), 20.0, snapshots=5)).axes[4]
    assert nothing.texts[0].get_text() == "none: all columns are 0 to rounding"


def test_runs_that_cannot_be_drawn():
    model = fastnc.ULPM(3, 2, 4)
    W, H = (1e200 * x for x in model.init(0))
    with pytest.raises(fastnc.Diverged) as diverged:
        fastnc.descend(model, W=W, H=H, epochs=5)
    empty = diverged.value.run
    assert plots.summary(empty) == "no snapshot"
    with pytest.raises(ValueError, match=r"times of at least 10; the run has no snapshot\. Run"):
        plots.figure2(empty)
    with pytest.raises(ValueError, match=r"the run has no snapshot"):
        empty.at("epoch", 1.0)
    flow = fastnc.flow(model, 20.0, snapshots=5)
    for told in (plots.flow_summary, plots.long_horizon):
        with pytest.raises(ValueError, match=r"`run` must be of `fastnc.flow`; for a descent"):
            told(fastnc.descend(model, epochs=20))
    adam = fastnc.descend(model, rule=fastnc.rules.Adam(0.01), epochs=20)
    batches = fastnc.descend(model, lr=1.0, batch_size=2, epochs=20)
    frozen = fastnc.descend(model, lr=1.0, freeze="W", epochs=20)
    for other, name in (
        (flow, "flow"), (adam, r"Adam\(0.01"), (batches, "batches of 2"), (frozen, "freeze W"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"plain gradient descent of a constant `lr`.*{name}"):
            plots.long_horizon(flow, other)
    plots.long_horizon(flow, fastnc.descend(model, lr=1, epochs=20))


@pytest.mark.parametrize(
    "draw",
    [
        plots.figure2, plots.figure3, plots.summary, plots.missing_margin, plots.long_horizon,
        plots.flow_summary, lambda run: plots.peeled(run, run),
        lambda run: plots.peeled_summary(run, run),
    ],
)  # fmt: skip
def test_what_is_no_run(draw):
    for given in (3, "run.npz", None):
        said = rf"`run` must be a Trajectory, .*; got {type(given).__name__}\.$"
        with pytest.raises(TypeError, match=said):
            draw(given)
    with pytest.raises(
        TypeError, match=r"got Trajectories\. Draw one of them, `run\[0\]`, or all by"
    ):
        draw(fastnc.Trajectories([]))


def test_what_is_no_run_beside_a_run():
    model = fastnc.ULPM(3, 2, 4)
    flow, descent = fastnc.flow(model, 20.0, snapshots=5), fastnc.descend(model, epochs=20)
    with pytest.raises(TypeError, match=r"`descent` must be a Trajectory, .*; got int"):
        plots.long_horizon(flow, 3)
    for told in (plots.peeled, plots.peeled_summary):
        with pytest.raises(TypeError, match=r"`alone` must be a Trajectory, .*; got int"):
            told(descent, 3)
    for told in (plots.sweep_bands, plots.bands_summary, plots.rules_compared, plots.rules_summary):
        with pytest.raises(
            TypeError, match=r"`runs` must be Trajectories, .*got Trajectory\. Of a"
        ):
            told(descent)
    with pytest.raises(TypeError, match=r"`history` must be a History, a Trajectory, .*; got int"):
        plots.trend(3)


def test_the_title_of_a_training_tells_its_network_and_its_optimiser():
    about = {
        "kind": "training", "model": "resnet18", "image_size": 16, "n_samples": 100, "lr": 0.01,
        "batch_size": 50, "seed": 2, "momentum": 0.9, "augment": "none", "schedule": "constant",
        "precision": "float32",
    }  # fmt: skip

    def title(**further):
        return settings(SimpleNamespace(about=about | further))

    usual = "resnet18, 100 images of 16 x 16, lr=0.01, batches of 50, seed 2"
    assert title() == usual
    for name, value in (("momentum", 0.0), ("augment", "shift"), ("head", "linear")):
        assert title(**{name: value}) == usual.replace("seed", f"{name}={value}, seed")
    # They were told by a file beside the run alone.
    noisy = "MNIST, label noise 0.1"
    assert title(images=noisy) == usual.replace("100 images", f"{noisy}, 100 images")


def test_formulas_of_unequal_classes_are_theirs():
    """The legend's formulas of equal classes had other values than what was drawn."""
    for sizes, equal in (((2, 2, 2), True), ((6, 2, 1), False)):
        model = fastnc.ULPM(3, dim=5, labels=np.repeat(range(3), sizes))
        run = fastnc.flow(model, 20.0, snapshots=5)
        labels = [text.get_text() for text in plots.missing_margin(run).legends[0].texts]
        assert (r"$|W_c - \sqrt{n} M_c|^2$" in labels) == equal
        assert (r"mean feature, $N\,|g|^2$" in labels) == equal
        assert ("W_c + sqrt(n) M_c" in plots.flow_summary(run)) == equal
    # What the legend says of the last run is what is drawn.
    counts = np.bincount(run.y)
    means = np.array([run.H[run.y == k].mean(axis=0) for k in range(3)])
    mean = np.square(means.sum(axis=0)).sum() / (1.0 / counts).sum()
    U, _, V = np.linalg.svd((np.eye(3) - 1 / 3) * np.sqrt(counts))
    A = U[:, :2] @ V[:2]
    apart = run.W - run.W.mean(axis=0) - A @ (np.sqrt(counts)[:, None] * means)
    found = fastnc.margin_decomposition(run.W, run.H, run.y)
    np.testing.assert_allclose(found.feature_mean, mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.misalignment, np.square(apart).sum(), rtol=1e-9)


def test_a_table_names_its_clock():
    runs = fastnc.sweep(fastnc.ULPM(3, 2, 4), epochs=20, seeds=range(2))
    assert "\nepoch: median" in plots.bands_summary(runs)
    flows = fastnc.Trajectories([fastnc.flow(fastnc.ULPM(3, 2, 4), 20.0, seed=s) for s in (0, 1)])
    assert "\nt: median" in plots.bands_summary(flows)


def test_small_values_are_drawn_and_rounding_is_not():
    """Squares such as nc1 were drawn as 0 from 1e-13 on, and so was a user's own column."""
    run = fastnc.flow(fastnc.ULPM(4, 3, 5), log10_time=1e5)
    drawn = plots.trend(run, ["nc1"]).axes[0].lines[0].get_ydata()
    assert drawn[-1] == run["nc1"][-1] and 1e-18 < drawn[-1] < 1e-16 and (drawn > 0.0).all()
    table = {"last": fastnc.collapse_metrics(run.H, run.y, run.W)}
    assert plots.layers(table, ("nc1",)).axes[0].lines[0].get_ydata()[0] > 0.0
    own = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=20, measure={"mine": lambda W, H, y: 1e-15})
    assert (plots.trend(own, ["mine"]).axes[0].lines[0].get_ydata() == 1e-15).all()
    # One sample a class has no variation: what a mean of one rounds to is not drawn.
    one = fastnc.flow(fastnc.ULPM(3, 1, 4), log10_time=20.0)
    for name in ("nc1", "within_class"):
        assert (plots.trend(one, [name]).axes[0].lines[0].get_ydata() == 0.0).all()


def test_rules_are_compared_by_epochs():
    """A sweep of flows ended in a KeyError."""
    flows = fastnc.sweep(fastnc.ULPM(3, 2, 4), method="flow", log10_time=3.0, seeds=range(2))
    with pytest.raises(ValueError, match=r"`runs` must have epochs; .*'log10_time'. Draw them wi"):
        plots.rules_compared(flows)
