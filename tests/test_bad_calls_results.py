"""Figures, tables and methods of results, called with what makes no sense: a sentence each.

As `test_bad_calls`. Every public function of `fastnc.plots` and `fastnc.paper` is here, which
`test_none_is_left_out` says, and every public method of what runs and measurements return.
"""

import inspect

import numpy as np
import pytest
from hostile_arguments import Sized, refusal_or_result
from matplotlib.figure import Figure

import fastnc
from fastnc import models, plots
from fastnc.collapse.layer_table import LayerTable
from fastnc.paper import minority_collapse, table1, verify
from fastnc.paper.minority_collapse import MinorityAngles

ODD = (
    3, -1, np.nan, None, "abc", "", b"abc", [], [3], [None], ["abc"], [[]], {}, {"a": 1},
    {"a": [1, 2]}, np.zeros(3), np.zeros((2, 2)), np.array("a"), Sized(), np, 10**400,
)  # fmt: skip
# A file that is there already under no name of these, a folder, and formats of others.
PATHS = ("run.npz", "run.csv", "run.png", ".", "no-such-folder/run")


@pytest.fixture(scope="module")
def made():
    """One good value for each name of an argument."""
    model = fastnc.ULPM(3, 2, 4)
    flow = fastnc.flow(model, 20.0, snapshots=5)
    run = fastnc.descend(model, epochs=100, snapshots=5)
    runs = fastnc.sweep(model, epochs=20, seeds=range(2), snapshots=5)
    statistics = fastnc.ClassStatistics(3, 4)
    statistics.update(run.H, run.y)
    metrics = fastnc.collapse_metrics(run.H, run.y, run.W)
    history = fastnc.History()
    history.add(1, metrics)
    row = table1.Row(
        "one", "a paper", models.softmax_code(3, 4),
        fastnc.solve(models.separation(3, 2, 4)), metrics.as_dict(), 1.0,
    )  # fmt: skip
    one = np.ones(1)
    angles = MinorityAngles(one.astype(int), one, one, 3.0, 0.1, 3, 2)
    finding = verify.Finding("Lemma", "says", "1", 0.0, 1.0, "why")
    return {
        "model": model, "flow": flow, "run": run, "runs": runs, "statistics": statistics,
        "metrics": metrics, "history": history, "table": [row], "findings": [finding],
        "angles": [angles], "layers": LayerTable(one=metrics, two=metrics),
        "deviations": fastnc.ClassDeviations(statistics, run.W),
    }  # fmt: skip


def _calls(made, path):
    """Name to function and good arguments."""
    flow, run, runs, table = (made[name] for name in ("flow", "run", "runs", "table"))
    drawn = {
        "missing_margin": {"run": flow}, "long_horizon": {"run": flow, "descent": run},
        "flow_summary": {"run": flow}, "findings_chart": {"findings": made["findings"]},
        "bands_summary": {"runs": runs}, "sweep_bands": {"runs": runs},
        "collapse_figure": {
            "metrics": made["metrics"], "statistics": made["statistics"], "names": [1, 2, 3],
        },
        "figure2": {"run": run}, "figure3": {"run": run},
        "geometry": {"table": table}, "layers": {"table": made["layers"], "names": ["nc1"]},
        "minority_collapse": {"runs": made["angles"]}, "summary": {"run": run},
        "peeled": {"run": run, "alone": run}, "peeled_summary": {"run": run, "alone": run},
        "rules_compared": {"runs": runs}, "rules_summary": {"runs": runs},
        "save": {"figure": Figure(), "stem": path},
        "trend": {"history": run, "names": ["nc1"]},
    }  # fmt: skip
    told = {
        "all_hold": {"findings": made["findings"]}, "table": {"findings": made["findings"]},
        "write_csv": {"findings": made["findings"], "path": path},
        "write_json": {"findings": made["findings"], "path": path},
    }  # fmt: skip
    sizes = {"n_classes": 3, "n_per_class": 1, "dim": 2}
    rows = {
        "rows": sizes, "fit": {**sizes, "seed": 0, "starts": 1, "only": ["softmax code"]},
        "to_csv": {"table": table, "path": path}, "to_latex": {"table": table, "path": path},
        "to_text": {"table": table},
    }  # fmt: skip
    ratios = {"ratios": [1], "n_classes": 3, "n_minority": 1, "weight_decay": 0.2, "seed": 0}
    calls = {f"plots.{name}": (getattr(plots, name), given) for name, given in drawn.items()}
    calls |= {f"verify.{name}": (getattr(verify, name), given) for name, given in told.items()}
    calls |= {f"table1.{name}": (getattr(table1, name), given) for name, given in rows.items()}
    return calls | {"minority_angles": (minority_collapse.minority_angles, ratios)}


def _methods(made, path):
    run, runs, metrics = made["run"], made["runs"], made["metrics"]
    H, y = run.H, run.y
    return {
        "run.at": (run.at, {"name": "nc1", "log10_time": 1.0}),
        "run.save": (run.save, {"path": path}), "run.to_csv": (run.to_csv, {"path": path}),
        "run.load": (fastnc.Trajectory.load, {"path": path}),
        "runs": (fastnc.Trajectories, {"runs": [run]}),
        "runs.load": (fastnc.Trajectories.load, {"path": path}),
        "runs.save": (runs.save, {"path": path}), "runs.to_csv": (runs.to_csv, {"path": path}),
        "runs.stack": (runs.stack, {"name": "nc1"}),
        "runs.quantiles": (runs.quantiles, {"name": "nc1", "q": 0.5}),
        "metrics.as_dict": (metrics.as_dict, {"convention": "paper"}),
        "metrics.table": (metrics.table, {"convention": "paper"}),
        "metrics.json": (metrics.json, {"convention": "paper"}),
        "metrics.to_latex": (metrics.to_latex, {"convention": "paper"}),
        "history.add": (fastnc.History().add, {"epoch": 1, "metrics": metrics}),
        "history.to_csv": (made["history"].to_csv, {"path": path}),
        "statistics.update": (fastnc.ClassStatistics(3, 4).update, {"H": H, "y": y}),
        "statistics.merge": (
            fastnc.ClassStatistics(3, 4).merge, {"other": made["statistics"]},
        ),
        "statistics.load_state_dict": (
            fastnc.ClassStatistics(3, 4).load_state_dict,
            {"state": made["statistics"].state_dict()},
        ),
        "statistics.metrics": (made["statistics"].metrics, {"W": run.W, "bias": np.ones(3)}),
        "deviations.update": (made["deviations"].update, {"H": H, "y": y}),
        "deviations.merge": (made["deviations"].merge, {"other": made["deviations"]}),
        "model.init": (made["model"].init, {"seed": 0, "dtype": "float32"}),
    }  # fmt: skip


def test_none_is_left_out(made, tmp_path):
    names = set(_calls(made, tmp_path / "a"))
    assert {f"plots.{name}" for name in plots.__all__} <= names
    by_seed = {"check", "beyond", "section_3_1_1", "section_3_1_2", "section_3_2", "Finding"}
    assert {f"verify.{name}" for name in set(verify.__all__) - by_seed} <= names
    for module, prefix in ((table1, "table1."), (minority_collapse, "")):
        for name, one in inspect.getmembers(module, inspect.isfunction):
            if one.__module__ == module.__name__ and not name.startswith("_"):
                assert prefix + name in names


@pytest.mark.parametrize("of", [_calls, _methods])
def test_refused_in_a_sentence(of, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    foreign = []
    unlike = [made[name] for name in made]
    for name, (call, good) in of(made, tmp_path / "a").items():
        for argument in good:
            others = PATHS if argument in ("path", "stem") else ()
            for odd in (*ODD, *unlike, *others):
                given = {**good, argument: odd}
                try:
                    refusal_or_result(call, given, OSError, NotImplementedError)
                except AssertionError as error:
                    if isinstance(error.__cause__, KeyError) and argument == "name":
                        # Of the absence of a column, which is one in Python's own words too.
                        assert str(error.__cause__.args[0]).endswith(".")
                        continue
                    foreign.append(f"{name}({argument}=...): {error}")
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("section", ["check", "section_3_1_1", "section_3_1_2", "section_3_2"])
def test_seeds_that_are_none(section):
    for seed in (None, -1, "a", 2.5, [1]):
        with pytest.raises(ValueError, match=r"`seed` must be an integer of at least 0"):
            list(getattr(verify, section)(seed))
