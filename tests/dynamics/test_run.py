"""The loop around a stepper, tried with a stepper of three lines."""

import os
import re
import signal
import threading

import numpy as np
import pytest

from fastnc._core.interrupts import Diverged, Interrupted
from fastnc.dynamics.checkpoint import Checkpoint
from fastnc.dynamics.loop import drive, snapshot_epochs
from fastnc.dynamics.run import Run
from fastnc.dynamics.steppers import Failed
from fastnc.dynamics.steppers.epochs import Epochs


class Decay(Epochs):
    """`W <- 0.999 W` an epoch; not finite from `bad` on, and calls `each` after each slice."""

    lr = 0.001

    def __init__(self, bad=10**12, each=lambda: None):
        self.W, self.H = np.full((2, 3), 1.0), np.zeros((4, 3))
        self.bad, self.each, self.kept = bad, each, None

    def make(self, epochs):
        for epoch in range(self.epoch + 1, self.epoch + epochs + 1):
            self.W = self.W * 0.999 if epoch < self.bad else self.W * np.nan

    def advance(self, due, steps):
        made = super().advance(due, steps)
        self.each()
        return made

    def finite(self):
        return bool(np.isfinite(self.W).all())

    def keep(self, steps):
        self.kept = self.W, self.epoch
        return True

    def roll_back(self):
        self.W, self.epoch = self.kept

    def measure(self):
        return {"log_loss": float(np.log(self.W[0, 0])), "norm_W": float(self.W.sum())}

    def state(self):
        return {"W": self.W.copy(), "H": self.H.copy(), "epoch": np.array(self.epoch)}

    def restore(self, state):
        self.W, self.H, self.epoch = state["W"].copy(), state["H"].copy(), int(state["epoch"])


class OnADevice(Decay):
    """Counts what is brought to the host; its H is too large for that to happen often."""

    fetched = slices = 0

    @property
    def H(self):
        self.fetched += 1
        return np.zeros((4, 3))

    @H.setter
    def H(self, values):
        pass

    def advance(self, due, steps):
        self.slices += 1
        return super().advance(due, steps)

    def measure(self):
        self.fetched += 1
        return super().measure()

    def state(self):
        self.fetched += 1
        return super().state()


ABOUT = {"snapshots": 10, "lr": 0.001}
Y = np.array([0, 1, 0, 1])


def run(stepper, epochs=5000, callback=None, path=None, every=1e9, resume=False):
    due = snapshot_epochs(epochs, ABOUT["snapshots"])
    return Run(stepper, Y, dict(ABOUT), due, callback).go(path, every, resume, False)


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
            epochs.append(int(Checkpoint.load(path, ABOUT).state["epoch"]))

    run(Decay(each=look), epochs=50, path=path, every=0)
    assert (
        epochs[0] == 0
        and len(set(epochs)) > 10
        and Checkpoint.load(path, ABOUT).state["epoch"] == 50
    )


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


def test_nothing_is_fetched_between_snapshots():
    stepper = OnADevice()
    result = run(stepper, epochs=300_000)
    # A fetch a snapshot, and W and H of the result: however many slices there were.
    assert stepper.fetched == len(result) + 1 and stepper.slices > len(result)


@pytest.mark.parametrize("bad", [1, 2, 777])
def test_divergence_of_a_state_too_large_to_keep_says_between_which_epochs(bad):
    stepper = Decay(bad)
    stepper.keep = lambda steps: False
    with pytest.raises(Diverged, match=r"W or H is not finite (somewhere )?after epoch") as caught:
        run(stepper)
    last = int(re.search(r"after epoch (\d+): the step", str(caught.value)).group(1))
    first = re.search(r"somewhere after epoch (\d+) and", str(caught.value))
    assert (int(first.group(1)) if first else last - 1) < bad <= last


def test_a_stepper_that_cannot_go_on_says_why():
    class Stuck(Decay):
        def advance(self, due, steps):
            if self.epoch >= 100:
                raise Failed("no way on from here.")
            return super().advance(due, min(steps, 100 - self.epoch))

    with pytest.raises(Diverged, match=r"no way on from here\.") as caught:
        run(Stuck())
    assert caught.value.run.about["stopped"] == "failed" and caught.value.run["epoch"][-1] == 100


def test_any_clock_will_do():
    class Flow(Decay):
        """Twice as far in log time with each step, to where that is due."""

        clock, unit, end = "log10_time", "snapshots", "log10_time"
        time, done = -np.inf, 0

        def advance(self, due, steps):
            for made in range(1, steps + 1):
                self.time = min(due, max(2 * self.time, 0.01))
                if self.time == due:
                    self.done += 1
                    return made
            return steps

        def report(self):
            return {"log10_time": self.time}

    due = [-np.inf, 0.5, 3.0, 1000.0]
    result = Run(Flow(), Y, dict(ABOUT), due).go(None, 1e9, False, False)
    assert result["log10_time"].tolist() == due and result.columns[0] == "log10_time"
    assert result.about["log10_time"] == 1000.0 == float(result.about["log10_time"])


def test_many_snapshots_are_found_at_once():
    """80,000 a decade: looking for an epoch in the list of them took half a minute."""
    stepper = Decay()
    due = snapshot_epochs(60_000, 80_000)
    looked = []

    class Due(list):
        def __contains__(self, epoch):
            looked.append(epoch)
            return super().__contains__(epoch)

        def __iter__(self):
            looked.append(None)
            return super().__iter__()

    result = Run(stepper, Y, dict(ABOUT), Due(due)).go(None, 1e9, False, False)
    assert len(result) == len(due) > 50_000 and not looked


def test_slices_grow_until_they_take_long_and_shrink_again():
    class Clocked:
        """A step takes a second from the thousandth on, and a millisecond before."""

        done, clock, slices = 0.0, 0.0, []

        def arrive(self):
            return self.done >= 1500

        def move(self, steps):
            self.slices.append(steps)
            for _ in range(steps):
                self.clock += 1e-3 if self.done < 1000 else 1.0
                self.done += 1
            return steps

    class Quiet:
        def update(self, n=1):
            pass

    moving = Clocked()
    drive(moving, 1e9, lambda: False, Quiet(), lambda: moving.clock)
    assert moving.slices[:8] == [1, 2, 4, 8, 16, 32, 64, 128] and max(moving.slices) == 128
    assert moving.slices[-1] < 128


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_every_signal_that_asks_to_stop_saves(tmp_path, name):
    number, path = getattr(signal, name), tmp_path / "checkpoint.npz"
    # A parent may have left it ignored, which a run would respect.
    given = signal.signal(number, {"SIGINT": signal.default_int_handler}.get(name, signal.SIG_DFL))
    try:
        _stopped_by(name, number, path)
    finally:
        signal.signal(number, given)


def _stopped_by(name, number, path):
    before = signal.getsignal(number)
    stepper = Decay()
    stepper.each = lambda: stepper.epoch >= 100 and os.kill(os.getpid(), number)
    said = {"SIGINT": "Ctrl-C"}.get(name, name)
    with pytest.raises(Interrupted, match=rf"stopped by {said} at epoch \d+ of 5000; the state is"):
        run(stepper, path=path)
    assert signal.getsignal(number) == before
    whole = run(Decay())
    assert run(Decay(), path=path, resume=True).W.tobytes() == whole.W.tobytes()


def test_signals_that_are_ignored_or_a_hosts_own_are_left_alone():
    heard = []
    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: heard.append("host"))
    try:
        stepper = Decay()

        def press():
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)

        stepper.each = press
        assert run(stepper, epochs=200)["epoch"][-1] == 200 and "host" in heard
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
