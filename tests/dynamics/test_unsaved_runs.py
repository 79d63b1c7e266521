"""A file that cannot be written takes no run with it: the error names it and carries the run."""

import errno
import os
import shutil

import numpy as np
import pytest

import fastnc

MODEL = fastnc.ULPM(n_classes=3, n_per_class=2, dim=4)


def failing(monkeypatch, at_call, act):
    """The call of that number (from 1) of `os.fsync` on a file, and all later ones, `act`."""
    sync, calls = os.fsync, []

    def counted(handle):
        calls.append(handle)
        if len(calls) >= at_call:
            act()
        return sync(handle)

    monkeypatch.setattr(os, "fsync", counted)


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


MAKERS = {
    "descend": lambda path, every: fastnc.descend(
        MODEL, epochs=200, checkpoint=path, checkpoint_every=every
    ),
    "flow": lambda path, every: fastnc.flow(
        MODEL, 20.0, snapshots=4, checkpoint=path, checkpoint_every=every
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_last_save(name, tmp_path, monkeypatch):
    whole = MAKERS[name](tmp_path / "whole.npz", 1e9)
    path = tmp_path / "checkpoint.npz"
    failing(monkeypatch, 1, full)
    with pytest.raises(OSError, match=r"checkpoint\.npz' cannot be written: No space left") as told:
        MAKERS[name](path, 1e9)
    monkeypatch.undo()
    run = told.value.run
    assert run.W.tobytes() == whole.W.tobytes() and len(run) == len(whole)
    # The state can be written elsewhere too, and is gone on from.
    told.value.write(path)
    resumed = fastnc.Trajectory.load(run.save(tmp_path / "run.npz"))
    assert resumed.H.tobytes() == whole.H.tobytes()
    if name == "descend":
        on = fastnc.descend(MODEL, epochs=300, checkpoint=path, resume=True)
        assert on.W.tobytes() == fastnc.descend(MODEL, epochs=300).W.tobytes()


@pytest.mark.parametrize("name", MAKERS)
def test_a_save_on_the_way(name, tmp_path, monkeypatch):
    """The folder goes while the run is under way; at every opportunity it is saved."""
    folder = tmp_path / "folder"
    folder.mkdir()
    # A save is two of them: the file's and the folder's.
    failing(monkeypatch, 3, lambda: shutil.rmtree(folder, ignore_errors=True))
    sentence = r"checkpoint\.npz' cannot be written: No such file or directory\."
    with pytest.raises(OSError, match=sentence) as told:
        MAKERS[name](folder / "checkpoint.npz", 0.0)
    run = told.value.run
    assert run.about["stopped"] == "unsaved" and np.isfinite(run.W).all() and len(run) > 0


def test_a_sweep_keeps_the_runs_that_are_done(tmp_path, monkeypatch):
    alone = fastnc.sweep(MODEL, epochs=50, seeds=range(3), threads=1)
    # A sweep first writes that nothing is done yet, then all of it.
    failing(monkeypatch, 3, full)
    with pytest.raises(OSError, match=r"sweep\.npz' cannot be written: No space left") as told:
        fastnc.sweep(
            MODEL, epochs=50, seeds=range(3), threads=1, checkpoint=tmp_path / "sweep.npz",
            checkpoint_every=1e9,
        )  # fmt: skip
    monkeypatch.undo()
    runs = told.value.run
    assert isinstance(runs, fastnc.Trajectories) and len(runs) == 3
    for one, other in zip(runs, alone, strict=True):
        assert one.W.tobytes() == other.W.tobytes()
