"""`descend(device="cuda")` from end to end, on the device or with the interpreter in its place."""

import os
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from interpreted import DEVICE, count_fetches, play_a_gpu, play_graphs

import fastnc
from fastnc import reference
from fastnc.dynamics import rank_snapshot
from fastnc.dynamics.composition import composed
from fastnc.dynamics.descent import prepare
from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers import cuda
from fastnc.dynamics.steppers.cuda import CudaDescent


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Without a GPU the CPU passes for one: the kernels are interpreted."""
    if DEVICE != "cuda":
        play_a_gpu(monkeypatch.setattr)


SMALL, LARGER = fastnc.ULPM(2, 3, 4), fastnc.ULPM(17, 1, 3)


@pytest.mark.parametrize("model", [SMALL, LARGER], ids=["small", "larger"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_goes_where_the_plain_loop_goes(model, dtype):
    run = fastnc.descend(model, lr=1.0, epochs=4, dtype=dtype, device="cuda")
    assert run.about["device"] == "cuda" and run.W.dtype == dtype
    W, H = (x.astype(np.float64) for x in model.init(0, dtype))
    log_losses = []
    for _ in range(5):
        log_losses.append(np.log(reference.loss(W, H, model.y) / len(model.y)))
        _, *after = reference.gradient_step(W, H, model.y, 1.0 / len(model.y))
        (W, H), before = after, W
    # Gradients with 16 bits in float32; four epochs of a few roundings in float64.
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(run["log_loss"], log_losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(run.W, before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_resumes_bit_for_bit(tmp_path, dtype):
    options = {"lr": 1.0, "dtype": dtype, "device": "cuda"}
    straight = fastnc.descend(SMALL, epochs=5, **options)
    file = tmp_path / "checkpoint.npz"
    fastnc.descend(SMALL, epochs=2, checkpoint=file, **options)
    resumed = fastnc.descend(SMALL, epochs=5, checkpoint=file, resume=True, **options)
    np.testing.assert_array_equal(resumed.W, straight.W)
    np.testing.assert_array_equal(resumed.H, straight.H)
    assert resumed["log_loss"][-1] == straight["log_loss"][-1]


def test_slices_of_a_graph_change_no_bit(monkeypatch):
    monkeypatch.setattr(cuda, "EPOCHS_A_GRAPH", 2)
    W, H = LARGER.init(0, "float64")
    steppers = [cuda.CudaDescent(W, H, LARGER.y, 1.0) for _ in range(3)]
    replays = play_graphs(monkeypatch, cuda.CudaDescent)
    steppers[0].make(7)
    for epochs in (3, 4):
        steppers[1].make(epochs)
    for _ in range(7):
        steppers[2].make(1)
    assert DEVICE == "cuda" or len(replays) == 3 + 1 + 2
    for other in steppers[1:]:
        np.testing.assert_array_equal(steppers[0].W, other.W)
        np.testing.assert_array_equal(steppers[0].H, other.H)
    before = steppers[0].state()
    steppers[0].make(2)
    again = steppers[0].W
    steppers[0].restore(before)
    steppers[0].make(2)
    np.testing.assert_array_equal(steppers[0].W, again)


def test_a_run_that_diverges_says_after_which_epoch():
    with pytest.raises(fastnc.Diverged, match="is not finite after epoch") as caught:
        fastnc.descend(SMALL, lr=1e300, epochs=4, device="cuda")
    assert caught.value.run["epoch"][0] == 0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_sweep_has_the_bits_of_each_run_alone(tmp_path, dtype):
    options = {"epochs": 4, "dtype": dtype, "device": "cuda"}
    # The second step diverges; the larger model does not fit a program and runs by itself.
    runs = fastnc.sweep(
        [SMALL, LARGER], [0.5, 1e300], seeds=range(2), checkpoint=tmp_path / "sweep.npz", **options
    )
    assert [run.about["stopped"] for run in runs] == ["epochs"] * 2 + ["diverged"] * 2 + [
        "epochs"
    ] * 2 + ["diverged"] * 2
    alone = fastnc.descend(SMALL, 0.5, seed=1, **options)
    for name in ("W", "H"):
        np.testing.assert_array_equal(getattr(runs[1], name), getattr(alone, name))
    np.testing.assert_array_equal(runs[1]["log_loss"], alone["log_loss"])
    with pytest.raises(fastnc.Diverged) as caught:
        fastnc.descend(SMALL, 1e300, seed=1, **options)
    assert len(runs[3]["epoch"]) == len(caught.value.run["epoch"])


def test_a_sweep_that_is_stopped_goes_on_with_the_same_bits(tmp_path):
    from fastnc.dynamics.together import Together

    options = {"lr": 0.5, "epochs": 6, "seeds": range(2), "device": "cuda"}
    straight = fastnc.sweep(SMALL, **options)
    move = Together.move

    def press(together, steps):
        made = move(together, steps)
        if together.runs[0].stepper.epoch >= 2:
            os.kill(os.getpid(), signal.SIGINT)
        return made

    checkpoint = tmp_path / "sweep.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Together, "move", press)
        with pytest.raises(fastnc.Interrupted, match="0 of 2 runs are done"):
            fastnc.sweep(SMALL, checkpoint=checkpoint, **options)
    assert len(list(tmp_path.glob("sweep-*.npz"))) == 2
    resumed = fastnc.sweep(SMALL, checkpoint=checkpoint, resume=True, **options)
    for ours, theirs in zip(resumed, straight, strict=True):
        np.testing.assert_array_equal(ours.W, theirs.W)
        np.testing.assert_array_equal(ours["log_loss"], theirs["log_loss"])
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.skipif(DEVICE == "cuda", reason="plays two devices")
def test_a_sweep_over_two_devices_has_the_bits_of_one(tmp_path, monkeypatch):
    options = {"epochs": 4, "seeds": range(3), "device": "cuda"}
    alone = fastnc.sweep([SMALL, LARGER], 0.5, **options)
    entered = set()

    @contextmanager
    def device(number):
        entered.add((number, threading.get_ident()))
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", device)
    path = tmp_path / "sweep.npz"
    runs = fastnc.sweep([SMALL, LARGER], 0.5, checkpoint=path, checkpoint_every=0, **options)
    assert {number for number, _ in entered} == {0, 1} and len({t for _, t in entered}) == 2
    for ours, theirs in zip(runs, alone, strict=True):
        np.testing.assert_array_equal(ours.H, theirs.H)
        np.testing.assert_array_equal(ours["log_loss"], theirs["log_loss"])
    assert list(tmp_path.iterdir()) == [path]
    # What ends one device's share ends the other's, and is what is told.
    began = CudaDescent.advance

    def fail(self, due, steps):
        if threading.get_ident() != main and len(self.y) == LARGER.n_samples:
            raise RuntimeError("a device is lost")
        return began(self, due, steps)

    main = threading.get_ident()
    monkeypatch.setattr(CudaDescent, "advance", fail)
    with pytest.raises(RuntimeError, match="a device is lost"):
        fastnc.sweep([SMALL, LARGER], 0.5, **options)


R = fastnc.rules
RULES = {
    "momentum": R.Momentum(0.5),
    "nesterov": R.Momentum((0.5, 0.2), nesterov=True, weight_decay=0.01),
    "adam": R.Adam(R.Cosine(1e-2, 10)),
    "adamw": R.AdamW(1e-2),
    "scheduled": R.GradientDescent(R.Power(1.0, 0.5)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rules_go_where_their_formulas_in_numpy_go(name, dtype, tmp_path):
    rule = RULES[name]
    options = {"rule": rule, "dtype": dtype, "snapshots": 2, "device": "cuda"}
    run = fastnc.descend(SMALL, epochs=6, **options)
    theta = tuple(x.astype(np.float64) for x in SMALL.init(0, dtype))
    state = rule.init(*theta)
    pair = rule.lr if isinstance(rule.lr, tuple) else (rule.lr, rule.lr)
    for step in range(6):
        _, *grads = reference.loss_and_grads(*theta, SMALL.y)
        rates = tuple(lr(step) if callable(lr) else lr for lr in pair)
        grads = tuple(g / len(SMALL.y) for g in grads)
        changes = rule.update(theta, grads, state, rates, step + 1)
        theta = tuple(x + c for x, c in zip(theta, changes, strict=True))
    # As above; Adam's first steps divide a gradient by itself, whatever its rounding.
    tolerance = 1e-11 if dtype == "float64" else 3e-3
    for x, other in zip((run.W, run.H), theta, strict=True):
        np.testing.assert_allclose(x, other, rtol=tolerance, atol=tolerance)
    path = tmp_path / "checkpoint.npz"
    for epochs in (2, 6):
        again = fastnc.descend(SMALL, epochs=epochs, checkpoint=path, resume=True, **options)
    np.testing.assert_array_equal(again.W, run.W)


def test_a_frozen_factor_stays_on_the_device_too():
    start = SMALL.init(0)[0]
    run = fastnc.descend(SMALL, 1.0, 4, freeze="W", device="cuda")
    np.testing.assert_array_equal(run.W, start)
    assert run["log_loss"][-1] < run["log_loss"][0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("dim", [3, 5])
def test_a_snapshot_on_the_device_is_that_of_the_cpu(dim, dtype, monkeypatch):
    monkeypatch.setattr(cuda, "ON_THE_HOST", 0)
    # Chunks of four rows; more features than a Gram matrix of them is made for, or fewer.
    monkeypatch.setattr(rank_snapshot, "_CHUNK_BYTES", 8 * (dim + 1) * 4)
    monkeypatch.setattr(rank_snapshot, "_GRAM_FEATURES", 4)
    model = fastnc.ULPM(3, dim=dim, labels=np.arange(10) % 3)
    stepper = cuda.CudaDescent(*model.init(0, dtype), model.y, 1.0)
    stepper.make(3)
    if dtype == "float32":
        assert stepper.tensors["H_low"].abs().max() > 0.0
    here, there = measure(*stepper.wide(), model.y), stepper.measure()
    assert list(here) == list(there)
    for name, value in here.items():
        # Sums in another order; `margin_ratio_spectral` by an iteration that stops at 1e-10.
        assert there[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name


def test_a_snapshot_of_one_class_or_of_what_is_not_finite(monkeypatch):
    monkeypatch.setattr(cuda, "ON_THE_HOST", 0)
    one = fastnc.ULPM(3, dim=4, labels=[1, 1, 1])
    stepper = cuda.CudaDescent(*one.init(0), one.y, 1.0)
    assert np.isfinite(stepper.measure()["margin"])
    stepper = cuda.CudaDescent(*SMALL.init(0), SMALL.y, 1.0)
    stepper.tensors["H"][2, 1] = np.inf
    assert np.isnan(stepper.measure()["log_loss"])


def test_a_checkpoint_is_written_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "CHEAP_TO_COPY", 0)
    options = {"lr": 1.0, "device": "cuda", "dtype": "float32", "snapshots": 2}
    straight = fastnc.descend(SMALL, epochs=9, **options)
    path = tmp_path / "run.npz"
    for epochs in (4, 9):
        run = fastnc.descend(
            SMALL, epochs=epochs, checkpoint=path, checkpoint_every=0, resume=True, **options
        )
    for name in "WH":
        np.testing.assert_array_equal(getattr(run, name), getattr(straight, name))
    # What is handed over does not change while later epochs are made.
    stepper = cuda.CudaDescent(*SMALL.init(0), SMALL.y, 1.0)
    before = stepper.H
    later = stepper.state_later()
    stepper.make(3)
    assert np.array_equal(later()["H"], before) and not np.array_equal(stepper.H, before)


def test_a_file_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "CHEAP_TO_COPY", 0)
    path = tmp_path / "folder" / "run.npz"
    path.parent.mkdir()

    def gone(row):
        path.parent.rmdir()
        return True

    with pytest.raises(OSError, match="folder"):
        fastnc.descend(SMALL, 1.0, 4, device="cuda", checkpoint=path, callback=gone)


RUNS = {
    "plain": {"lr": 1.0},
    "adam": {"rule": fastnc.rules.Adam(1e-2, eps=0.0)},
    "loss-scaled": {"schedule": "loss-scaled"},
    "noise": {"lr": 1.0, "noise": 0.1},
    "batches": {"lr": 1.0, "batch_size": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_nothing_goes_to_the_host_between_snapshots(name, monkeypatch):
    run = prepare(
        LARGER, composed(**{"lr": 5.0, "rule": None, "schedule": "constant"} | RUNS[name],
                         device="cuda"),
        40, 0, None, None, 1, None,
    )  # fmt: skip
    assert not run.arrive()
    ways = ("cpu", "numpy", "item", "tolist", "__bool__", "__float__", "__int__")
    with monkeypatch.context() as patch:
        fetched = count_fetches(patch.setattr, *ways)
        run.stepper.make(3)
    assert fetched == []


@pytest.mark.skipif(DEVICE == "cuda", reason="plays a device's time")
def test_a_run_has_the_rate_of_its_kernels(monkeypatch):
    """(1000, 512) and 1e5 samples, 303 epochs a second; a fetch waits, at 25 GB/s, as PCIe does."""
    epoch, copy = 1.0 / 303, 1000 * 100 * 512 * 4 / 25e9
    host = device = 0.0

    def descend(self, epochs):
        nonlocal host, device
        host += epochs * 15e-6
        device = max(host, device) + epochs * epoch

    def waiting(seconds, method):
        def wait(self, *arguments, **options):
            nonlocal host
            host = max(host, device) + seconds
            return method(self, *arguments, **options)

        return wait

    def kept(self, steps, keep=CudaDescent.keep):
        nonlocal device
        done = keep(self, steps)
        # W, H and their low parts, read and written at 3 TB/s.
        device = max(host, device) + 4 * copy * 25e9 / 3e12 * done
        return done

    plan = composed(lr=1.0, rule=None, schedule="constant", device="cuda")
    run = prepare(LARGER, plan, 3000, 0, None, None, 1, None)
    monkeypatch.setattr(cuda, "CHEAP_TO_COPY", 0)
    monkeypatch.setattr(CudaDescent, "descend", descend)
    monkeypatch.setattr(CudaDescent, "keep", kept)
    monkeypatch.setattr(torch.Tensor, "__bool__", waiting(0.0, torch.Tensor.__bool__))
    monkeypatch.setattr(torch.Tensor, "cpu", waiting(copy, torch.Tensor.cpu))
    times = {}
    run.callback = lambda row: times.update({row["epoch"]: host})
    run.seconds = lambda: host
    run.go(None, 60.0, False, False)
    first, last = list(times)[-2:]
    assert (last - first) * epoch / (times[last] - times[first]) >= 0.95
