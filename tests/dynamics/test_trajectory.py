"""What a run leaves behind: columns, files, and clear refusals."""

import csv

import numpy as np
import pytest

import fastnc
from fastnc import Trajectory


@pytest.fixture
def run():
    columns = {"epoch": [0, 1, 10, 100], "margin": [-1.0, 0.1, np.nan, 1 / 3]}
    rng = np.random.default_rng(0)
    return Trajectory(
        columns, rng.normal(size=(2, 3)), rng.normal(size=(4, 3)), np.array([0, 1, 0, 1]), {"lr": 5}
    )


def test_columns_and_times(run):
    assert run.columns == ("epoch", "margin") and run.time == "epoch" and len(run) == 4
    assert run.log10_time.tolist() == [-np.inf, 0.0, 1.0, 2.0]
    assert run.at("epoch", [0.0, 1.5, 2.0, 9.0]).tolist() == [1, 10, 100, 100]
    assert "margin" in run and "loss" not in run
    with pytest.raises(KeyError, match="no column 'loss'; this run has epoch, margin"):
        run["loss"]
    assert "4 snapshots to epoch=100" in repr(run)


def test_save_and_load_keep_every_bit(run, tmp_path):
    back = Trajectory.load(run.save(tmp_path / "run.npz"))
    assert back.columns == run.columns and back.about == run.about
    for name in run.columns:
        assert back[name].tobytes() == run[name].tobytes()
    for name in ("W", "H", "y"):
        assert getattr(back, name).tobytes() == getattr(run, name).tobytes()
    assert back.bias is None
    run = Trajectory({"epoch": [1]}, run.W, run.H, run.y, {}, np.arange(len(run.W)) / 3)
    back = Trajectory.load(run.save(tmp_path / "run.npz"))
    assert back.bias.tobytes() == run.bias.tobytes()
    # One that is not of this W.
    run.bias = np.zeros(len(run.W) + 1)
    with pytest.raises(ValueError, match="is not a trajectory"):
        Trajectory.load(run.save(tmp_path / "run.npz"))


def test_csv_keeps_every_digit(run, tmp_path):
    with open(run.to_csv(tmp_path / "run.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[3]["margin"]) == 1 / 3 and rows[2]["epoch"] == "10"
    assert np.isnan(float(rows[2]["margin"]))


def test_names_of_other_formats(run, tmp_path):
    """A file of arrays under such a name is what no reader of that format takes."""
    for name in ("run.csv", "run.JSON", "run.pt"):
        with pytest.raises(ValueError, match=rf"must not end in '.*, .*{name}'\. .* is `to_csv`"):
            run.save(tmp_path / name)
    with pytest.raises(ValueError, match=r"`path` must not end in '.csv'"):
        fastnc.Trajectories([run]).save(tmp_path / "runs.csv")
    assert not list(tmp_path.iterdir())
    for name in ("run", "run.lr5"):
        assert len(Trajectory.load(run.save(tmp_path / name))) == 4


def test_other_files_are_refused(run, tmp_path):
    np.savez(tmp_path / "x.npz", W=np.ones(3))
    with pytest.raises(ValueError, match="is not a trajectory"):
        Trajectory.load(tmp_path / "x.npz")
    with pytest.raises(IsADirectoryError, match=r"the trajectory '.*' is a folder; name the file"):
        Trajectory.load(tmp_path)
    with pytest.raises(ValueError, match="must be some, of one length"):
        Trajectory({"epoch": [1], "margin": [1, 2]}, run.W, run.H, run.y, {})


def test_tables_of_other_libraries(monkeypatch):
    import sys

    run = fastnc.descend(fastnc.ULPM(3, 2, 4), lr=1.0, epochs=30, snapshots=3)
    assert run.keys() == run.columns and dict(run)["margin"] is run["margin"]
    for library, make in (("pandas", run.to_pandas), ("polars", run.to_polars)):
        pytest.importorskip(library)
        table = make()
        assert tuple(table.columns) == run.columns and len(table) == len(run)
        np.testing.assert_array_equal(table["margin"].to_numpy(), run["margin"])
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError, match=f"{library} is needed for `to_{library}`: pip inst"):
            make()
    assert run.about["seed"] == 0
