"""A list of trajectories: one file, quantiles that leave out what had ended, settings."""

import csv

import numpy as np
import pytest

import fastnc
from fastnc import Trajectories, Trajectory
from fastnc.plots import bands_summary, sweep_bands


def made(seed, rows, K=2, N=4, dtype="float64", lr=5.0):
    rng = np.random.default_rng(seed)
    columns = {"epoch": np.arange(rows), "margin": seed + np.arange(rows) / 3}
    W, H = rng.normal(size=(K, 3)).astype(dtype), rng.normal(size=(N, 3)).astype(dtype)
    model = f"ULPM(n_classes={K}, dim=3)"
    about = {"model": model, "lr": lr, "seed": seed, "dtype": dtype, "stopped": "epochs"}
    return Trajectory(columns if rows else {"epoch": []}, W, H, np.arange(N) % K, about)


@pytest.fixture
def runs():
    return Trajectories(
        [made(0, 5), made(1, 3), made(2, 5, K=3), made(3, 5, dtype="float32"), made(4, 0)]
    )


def test_save_and_load_keep_every_bit_and_the_order(runs, tmp_path):
    back = Trajectories.load(runs.save(tmp_path / "runs.npz"))
    assert len(back) == len(runs)
    for run, other in zip(runs, back, strict=True):
        assert run.about == other.about and len(run) == len(other)
        for name in run.columns:
            assert run[name].tobytes() == other[name].tobytes()
        for name in ("W", "H", "y"):
            assert getattr(run, name).tobytes() == getattr(other, name).tobytes()
            assert getattr(run, name).dtype == getattr(other, name).dtype


def test_a_bias_is_kept_by_the_runs_that_have_one(runs, tmp_path):
    runs[1].bias = np.arange(len(runs[1].W)) / 3
    back = Trajectories.load(runs.save(tmp_path / "runs.npz"))
    assert [run.bias is None for run in back] == [True, False, True, True, True]
    assert back[1].bias.tobytes() == runs[1].bias.tobytes()


def test_quantiles_leave_out_what_had_ended(runs):
    assert runs.longest is runs[0]
    stack = runs.stack("margin")
    assert stack.shape == (5, 5) and np.isnan(stack[1, 3:]).all() and np.isnan(stack[4]).all()
    median, high = runs.quantiles("margin", [0.5, 1.0])
    # Of 0, 1, 2, 3 at first; of 0, 2, 3 once the second run has ended.
    np.testing.assert_allclose(median[[0, 4]], [1.5, 2 + 4 / 3], rtol=1e-15)
    np.testing.assert_allclose(high[[0, 4]], [3.0, 3 + 4 / 3], rtol=1e-15)
    only = Trajectories([made(0, 2), Trajectory({"epoch": [0, 1], "margin": [np.nan, 1.0]},
                         np.ones((2, 3)), np.ones((4, 3)), np.zeros(4), {})])  # fmt: skip
    assert only.quantiles("margin", 0.0).tolist() == [[0.0, 1 / 3]]


def test_settings_and_slices(runs):
    assert {key: len(group) for key, group in runs.settings().items()} == {
        "K=2, N=4, d=3, lr=5, float64": 3,
        "K=3, N=4, d=3, sizes [2, 1, 1], lr=5, float64": 1,
        "K=2, N=4, d=3, lr=5, float32": 1,
    }
    assert isinstance(runs[1:3], Trajectories) and runs[1:3][0] is runs[1] and runs[-1] is runs[4]
    assert "5 runs of K=2" in repr(runs)


def test_settings_of_unequal_classes_and_of_flows(tmp_path):
    labels = [0, 0, 0, 1, 1, 2], [0, 1, 2, 2, 1, 0], [2, 2, 2, 0, 0, 1]
    models = [fastnc.ULPM(3, dim=4, labels=y) for y in labels]
    runs = fastnc.sweep(models, epochs=10, seeds=range(2), snapshots=1)
    assert {key: len(group) for key, group in runs.settings().items()} == {
        f"K=3, N=6, d=4, {more}lr=5, float64": 2
        for more in ("sizes [3, 2, 1], ", "", "sizes [2, 1, 3], ")
    }
    # Of another loss too: runs of these were one setting.
    focal = [fastnc.ULPM(3, dim=4, labels=y, loss="focal") for y in labels]
    told = fastnc.sweep(focal, epochs=10, seeds=[0], snapshots=1).settings()
    assert ["sizes [3, 2, 1]" in key for key in told] == [True, False, False]
    assert len(told) == 3 and all("loss=Focal" in key for key in told)
    flows = Trajectories([fastnc.flow(models[1], 2.0, seed, snapshots=2) for seed in range(2)])
    assert repr(flows) == "Trajectories(2 runs of K=3, N=6, d=4, flow)"
    assert "flow: 2 runs" in bands_summary(flows) and sweep_bands(flows).axes
    with open(flows.to_csv(tmp_path / "flows.csv"), newline="") as file:
        assert {row["lr"] for row in csv.DictReader(file)} == {""}


def test_settings_tell_any_two_apart():
    R = fastnc.rules
    abouts = [
        {"rule": repr(rule)}
        for rule in (
            R.Momentum(1.0), R.Momentum(1.0, nesterov=True), R.Momentum(1.0, 0.5), R.Adam(1e-2),
            R.Adam((1e-2, 0.1)), R.Adam(1e-2, betas=(0.5, 0.9)), R.Momentum(R.Cosine(5.0, 100)),
        )
    ]  # fmt: skip
    abouts += [{"rule": "mine.Rule(a=1, b=[2, 3])"}, {"rule": "mine.Rule(a=1, b=[2, 4])"}]
    abouts += [{"lr": 1.0, "noise": 0.1}, {"lr": 1.0, "label_noise": 0.1}, {"lr": 1.0}]
    abouts += [{"lr": 1.0, "schedule": "loss-scaled"}, {"lr": 1.0, "freeze": "W"}]
    W, H, y = np.ones((2, 3)), np.ones((4, 3)), np.arange(4) % 2
    runs = Trajectories([Trajectory({"epoch": [0]}, W, H, y, about) for about in abouts])
    told = [key.removeprefix("K=2, N=4, d=3, ") for key in runs.settings()]
    assert told == [
        "Momentum(1)", "Momentum(1, nesterov=True)", "Momentum(1, momentum=0.5)", "Adam(0.01)",
        "Adam((0.01, 0.1))", "Adam(0.01, betas=(0.5, 0.9))", f"Momentum({R.Cosine(5.0, 100)!r})",
        "Rule(a=1, b=[2, 3])", "Rule(a=1, b=[2, 4])", "lr=1, noise 0.1", "lr=1, label noise 0.1",
        "lr=1", "lr=1, loss-scaled", "lr=1, freeze W",
    ]  # fmt: skip


def test_csv_has_a_line_a_snapshot(runs, tmp_path):
    with open(runs.to_csv(tmp_path / "runs.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    # Of different problems no two lines are alike.
    assert rows[0]["class_sizes"] == "2 2" and rows[8]["class_sizes"] == "2 1 1"
    assert {row["n_samples"] for row in rows} == {"4"}
    assert len(rows) == 18 and rows[7]["run"] == "1" and float(rows[7]["margin"]) == 1 + 2 / 3
    pytest.importorskip("pandas")
    frame = runs.to_pandas()
    assert list(frame.columns) == list(rows[0]) and len(frame) == 18
    np.testing.assert_array_equal(frame["margin"], [float(row["margin"]) for row in rows])


def test_refusals(runs, tmp_path):
    with pytest.raises(ValueError, match="there is no run"):
        _ = Trajectories([]).longest
    with pytest.raises(ValueError, match=r"`q` must lie in 0..1; got 50"):
        runs.quantiles("margin", 50)
    with pytest.raises(IsADirectoryError, match=r"the trajectories '.*' is a folder; name the"):
        Trajectories.load(tmp_path)
    with pytest.raises(ValueError, match="does not hold trajectories"):
        Trajectories.load(runs[0].save(tmp_path / "run.npz"))


def test_runs_of_other_times_have_no_quantiles():
    """Their rows were compared one by one, whatever their times."""
    model = fastnc.ULPM(3, 2, 4)
    fine = fastnc.descend(model, epochs=100)
    coarse, longer = (fastnc.descend(model, epochs=e, snapshots=5) for e in (97, 130))
    flow = fastnc.flow(model, 3.0, snapshots=2)
    for runs, said in (
        ([fine, coarse], r"run 1 has epoch 6 at row 5, where the longest has 5\. Give all"),
        ([longer, coarse], r"run 1 has epoch 97 at row \d+, where the longest has 100\."),
        ([flow, fine], r"run 0 has 'log10_time' where the longest has 'epoch'"),
    ):
        with pytest.raises(ValueError, match=f"measured at the same times; {said}"):
            fastnc.Trajectories(runs).quantiles("margin")
    # A run that ended at one of the longer one's times has the first of its rows.
    short = fastnc.descend(model, epochs=100, snapshots=5)
    assert np.isnan(fastnc.Trajectories([longer, short]).stack("margin")[1, -1])


def test_settings_that_differ_in_little():
    """Six digits of the step size, and nothing of `replacement` and `rtol`, made them one."""
    model, adam = fastnc.ULPM(3, 2, 4), fastnc.rules.Adam
    two = {"epochs": 5, "seeds": range(2)}
    batches = [
        fastnc.descend(model, epochs=5, batch_size=2, replacement=drawn) for drawn in (False, True)
    ]
    for runs, told in (
        (fastnc.sweep(model, lr=[1.0, 1.0000001], **two), ["lr=1,", "lr=1.0000001,"]),
        (
            fastnc.sweep(model, rules=[adam(1e-2), adam(0.0100000001)], **two),
            ["Adam(0.01)", "Adam(0.0100000001)"],
        ),
        (fastnc.Trajectories(batches), ["batches of 2, fl", "of 2, drawn with replacement, fl"]),
        (
            fastnc.Trajectories([fastnc.flow(model, 3.0, rtol=rtol) for rtol in (1e-8, 1e-4)]),
            [", flow", ", flow, rtol 0.0001"],
        ),
    ):
        names = list(runs.settings())
        assert len(names) == 2 and told[0] in names[0] and told[1] in names[1]


def test_a_table_tells_runs_apart_by_all_that_they_were_given(tmp_path):
    """Rows of runs with and without noise had the same model, rule, lr, batches and seed."""
    model, R = fastnc.ULPM(3, 2, 4), fastnc.rules
    rule = R.Momentum(0.5)
    options = [
        {}, {"noise": 1e-3}, {"label_noise": 0.1}, {"freeze": "H"}, {"dtype": "float32"},
        {"batch_size": 2}, {"batch_size": 2, "replacement": True},
    ]  # fmt: skip
    runs = [fastnc.descend(model, rule=rule, epochs=5, **given) for given in options]
    together = fastnc.Trajectories(runs)
    with open(together.to_csv(tmp_path / "runs.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    own = list(rows[0])[1 : list(rows[0]).index("epoch")]
    settings = {tuple(row[name] for name in own) for row in rows}
    assert len(settings) == len(options)
    assert {row["noise"] for row in rows if row["run"] == "1"} == {"0.001"}
    # What they share has no column, and no two columns have one name.
    alone = fastnc.Trajectories(
        [fastnc.descend(model, epochs=5, measure={"lr": lambda W, H, y: 7.0})]
    )
    with open(alone.to_csv(tmp_path / "alone.csv"), newline="") as file:
        (heads, *lines) = csv.reader(file)
    assert heads[:6] == ["run", "model", "rule", "lr (setting)", "batch_size", "seed"]
    assert len(set(heads)) == len(heads) and lines[0][3] == "5.0" and lines[0][-1] == "7.0"


def test_every_step_size_that_is_a_number_has_its_cell():
    """Of runs in batches, with noise, or of other rules the cell was empty."""
    rules = [fastnc.rules.Adam(0.01), fastnc.rules.GradientDescent(2)]
    runs = fastnc.sweep(fastnc.ULPM(3, 2, 4), rules=rules, batch_size=2, epochs=5, seeds=range(1))
    names, *lines = runs._lines()
    at = list(names).index("lr")
    assert {line[at] for line in lines} == {0.01, 2.0}
    assert [*runs.settings()][1] == "K=3, N=6, d=4, lr=2, batches of 2, float64"


def test_columns_of_other_dtypes_keep_every_bit(tmp_path):
    """Those of the first run's dtype cut all others: 0.5 was saved as 0."""
    model = fastnc.ULPM(2, 1, 2)
    W, H = model.init(0)
    columns = ([0, 1], [0.0, 0.5], np.array([0.0, 1 / 3], np.float32), [False, True])
    made = [
        Trajectory({"epoch": [0, 1], "own": own}, *factors, model.y, {"kind": "own"})
        for own in columns
        for factors in ((W, H), (W.astype("f4"), H), (W, H.astype("f4")))
    ]
    Trajectories(made).save(tmp_path / "runs.npz")
    again = Trajectories.load(tmp_path / "runs.npz")
    for run, old in zip(again, made, strict=True):
        for one, other in ((run["own"], old["own"]), (run.W, old.W), (run.H, old.H)):
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    made[-1].save(tmp_path / "run.npz")
    assert Trajectory.load(tmp_path / "run.npz")["own"].tolist() == [0, 1]
    for own in (["a", "b"], [1j, 2j], [None, 1.0]):
        with pytest.raises(TypeError, match="`columns` must hold real numbers; got 'own' of"):
            Trajectory({"epoch": [0, 1], "own": own}, W, H, model.y, {})
