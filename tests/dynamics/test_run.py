"""The loop around a stepper, tried with a stepper of three lines."""

import os
import signal
import threading

import numpy as np
import pytest

from fastnc._core.interrupts import Diverged, Interrupted
from fastnc.dynamics.checkpoint import Checkpoint
from fastnc.dynamics.run import Run, snapshot_epochs


class Decay:
    """`W <- 0.999 W` an epoch; not finite from `bad` on, and calls `each` after each slice."""

    def __init__(self, bad=10**12, each=lambda: None):
        self.W, self.H = np.full((2, 3), 1.0), np.zeros((4, 3))
        self.epoch, self.bad, self.each = 0, bad, each

    def advance(self, epochs):
        for _ in range(epochs):
            self.epoch += 1
            self.W = self.W * 0.999 if self.epoch < self.bad else self.W * np.nan
        self.each()

    def measure(self):
        return {"log_loss": float(np.log(self.W[0, 0])), "norm_W": float(self.W.sum())}

    def state(self):
        return {"W": self.W.copy(), "H": self.H.copy(), "made": np.array(self.epoch)}

    def restore(self, state):
        self.W, self.H, self.epoch = state["W"].copy(), state["H"].copy(), int(state["made"])


ABOUT = {"snapshots": 10, "lr": 0.001}
Y = np.array([0, 1, 0, 1])


def run(stepper, epochs=5000, callback=None, path=None, every=1e9, resume=False):
    return Run(stepper, Y, dict(ABOUT), epochs, callback).go(path, every, resume, False)


def test_snapshots_are_log_spaced_with_the_ends():
    epochs = snapshot_epochs(100_000, 40)
    assert epochs[:3] == [0, 1, 2] and epochs[-1] == 100_000
    ratios = np.diff(np.log10(epochs[epochs.index(1000) :]))
    # Rounding to whole epochs moves a spacing of 1/40 by at most 1/1000 of itself beyond 1000.
    assert len(ratios) == 80 and np.allclose(ratios, 1 / 40, atol=2e-3)
    assert snapshot_epochs(1, 40) == [0, 1] and snapshot_epochs(7, 1) == [0, 1, 7]


def test_rows_stand_at_the_snapshots():
    result = run(Decay())
    assert result["epoch"].tolist() == snapshot_epochs(5000, 10)
    # The product of 5000 factors: each of them may round once.
    np.testing.assert_allclose(result["log_loss"], result["epoch"] * np.log(0.999), atol=1e-11)
    assert result.about["stopped"] == "epochs" and result.about["epochs"] == 5000


def test_callback_sees_each_snapshot_and_may_stop():
    seen = []
    result = run(Decay(), callback=lambda row: seen.append(row["epoch"]) or row["epoch"] >= 100)
    assert seen == result["epoch"].tolist() and seen[-1] == 100
    assert result.about["stopped"] == "callback"


@pytest.mark.parametrize("bad", [1, 2, 777, 4321])
def test_divergence_names_the_epoch_and_keeps_what_there_was(bad):
    stepper = Decay(bad)
    with pytest.raises(Diverged, match=rf"after epoch {bad}: the step `lr`=0.001") as caught:
        run(stepper)
    kept = caught.value.run
    assert np.isfinite(kept.W).all() and kept.about["epochs"] == bad - 1
    assert kept["epoch"].tolist() == [e for e in snapshot_epochs(5000, 10) if e < bad]


def test_interrupt_falls_between_slices_and_resume_gives_the_same_bits(tmp_path):
    path = tmp_path / "checkpoint.npz"
    before = signal.getsignal(signal.SIGINT)
    whole = run(Decay())
    for stop_at in (1, 40, 1200, 3000):
        stepper = Decay()

        def press(stepper=stepper, stop_at=stop_at):
            if stepper.epoch >= stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        stepper.each = press
        with pytest.raises(Interrupted, match=r"stopped by Ctrl-C at epoch .* resume") as caught:
            run(stepper, path=path, resume=True)
        assert (
            caught.value.run["epoch"].tolist() == whole["epoch"][: len(caught.value.run)].tolist()
        )
    last = run(Decay(), path=path, resume=True)
    assert last.W.tobytes() == whole.W.tobytes()
    for name in whole.columns:
        assert last[name].tobytes() == whole[name].tobytes()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_can_be_prolonged(tmp_path):
    path = tmp_path / "checkpoint.npz"
    run(Decay(), epochs=333, path=path)
    longer = run(Decay(), epochs=5000, path=path, resume=True)
    assert longer["epoch"].tolist() == snapshot_epochs(5000, 10)
    with pytest.raises(
        ValueError, match=r"`epochs` must be at least the checkpoint's; .* 5000, got 10"
    ):
        run(Decay(), epochs=10, path=path, resume=True)


def test_checkpoint_at_every_opportunity(tmp_path):
    path = tmp_path / "checkpoint.npz"
    epochs = []

    def look():
        if path.exists():
            epochs.append(Checkpoint.load(path, ABOUT).epoch)

    run(Decay(each=look), epochs=50, path=path, every=0)
    assert epochs[0] == 0 and len(set(epochs)) > 10 and Checkpoint.load(path, ABOUT).epoch == 50


def test_another_problem_and_a_damaged_file_are_refused_and_kept(tmp_path):
    path = tmp_path / "checkpoint.npz"
    run(Decay(), epochs=50, path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"of another problem: its `lr` is 0.001, this run's is 2"):
        Checkpoint.load(path, {**ABOUT, "lr": 2})
    assert path.read_bytes() == before
    path.write_bytes(before[:-40])
    with pytest.raises(ValueError, match=r"the checkpoint .* is not readable"):
        run(Decay(), epochs=50, path=path, resume=True)
    np.savez(path, x=np.ones(2))
    with pytest.raises(ValueError, match="is not one that fastnc wrote"):
        run(Decay(), epochs=50, path=path, resume=True)


def test_a_thread_may_run_too():
    results = []
    worker = threading.Thread(target=lambda: results.append(run(Decay(), epochs=100)))
    worker.start()
    worker.join()
    assert results[0]["epoch"][-1] == 100
