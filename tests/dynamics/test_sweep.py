"""Many descents at once: the bits of each alone, whatever stops them."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.steppers.composed import ComposedDescent
from fastnc.dynamics.steppers.plain import PlainDescent
from fastnc.dynamics.sweep_store import Store

MODEL = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)


def assert_same_bits(run, other):
    assert run.columns == other.columns
    for name in run.columns:
        assert run[name].tobytes() == other[name].tobytes(), name
    for name in ("W", "H", "y"):
        assert getattr(run, name).tobytes() == getattr(other, name).tobytes(), name


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_run_has_the_bits_of_the_run_alone(threads):
    runs = fastnc.sweep(MODEL, epochs=300, seeds=range(5), threads=threads)
    assert len(runs) == 5
    for seed, run in enumerate(runs):
        assert_same_bits(run, fastnc.descend(MODEL, epochs=300, seed=seed))


def test_models_step_sizes_and_seeds_in_that_order(monkeypatch):
    # As if the second of these took several threads itself, and so had to run alone.
    monkeypatch.setattr(
        "fastnc.dynamics.steppers.plain.stays_on_one_thread", lambda m: m.n_samples != 10
    )
    models = [MODEL, fastnc.ULPM(5, 2, 20), fastnc.ULPM(5, dim=20, labels=[0, 3, 3, 1])]
    runs = fastnc.sweep(models, lr=(1.0, 5.0), epochs=20, seeds=[3, 7], threads=2)
    expected = [(m, r, s) for m in models for r in (1.0, 5.0) for s in (3, 7)]
    for (model, lr, seed), run in zip(expected, runs, strict=True):
        assert (run.about["lr"], run.about["seed"]) == (lr, seed)
        assert_same_bits(run, fastnc.descend(model, lr, epochs=20, seed=seed))
    assert [len(group) for group in runs.settings().values()] == [2] * 6
    assert next(iter(runs.settings())) == "K=5, N=50, d=20, lr=1, float64"


def test_a_diverged_run_stays_and_leaves_the_others_alone():
    runs = fastnc.sweep(MODEL, lr=[5.0, 1e6], epochs=500, seeds=range(2))
    assert [run.about["stopped"] for run in runs] == ["epochs"] * 2 + ["diverged"] * 2
    assert np.isfinite(runs[3]["log_loss"]).all() and len(runs[3]) < len(runs[0])
    assert np.isnan(runs.stack("margin")[3, -1])


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_interrupted_and_resumed_sweeps_have_the_same_bits(tmp_path, every):
    path = tmp_path / "checkpoint.npz"
    before = signal.getsignal(signal.SIGINT)
    whole = fastnc.sweep(MODEL, epochs=60_000, seeds=range(4))
    options = {"epochs": 60_000, "seeds": range(4), "threads": 2, "checkpoint": path}

    # The key is pressed by the first run that gets to epoch 1000, whatever the machine's speed,
    # and no run goes on from there before the calling thread has heard of it.
    make, pressed = PlainDescent.make, threading.Event()

    def press(stepper, n):
        make(stepper, n)
        if stepper.epoch + n >= 1000 and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)
        while pressed.is_set() and signal.getsignal(signal.SIGINT) is not before:
            time.sleep(0.001)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainDescent, "make", press)
        with pytest.raises(fastnc.Interrupted, match=r"stopped by Ctrl-C: 0 of 4 runs are done; "):
            fastnc.sweep(MODEL, **options, checkpoint_every=every)
    assert (tmp_path / "checkpoint-underway0.npz").exists()
    runs = fastnc.sweep(MODEL, **options, checkpoint_every=every, resume=True)
    for run, other in zip(runs, whole, strict=True):
        assert_same_bits(run, other)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.npz"]
    again = fastnc.sweep(MODEL, **options, resume=True)
    assert_same_bits(again[3], whole[3])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_of_another_sweep_or_a_damaged_one_stays(tmp_path):
    path = tmp_path / "checkpoint.npz"
    options = {"epochs": 10, "checkpoint": path, "resume": True}
    fastnc.sweep(MODEL, seeds=range(2), **options)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another problem: its `seeds` is \[0, 1\], this run's"):
        fastnc.sweep(MODEL, seeds=range(3), **options)
    assert path.read_bytes() == before
    path.write_bytes(before[:300])
    with pytest.raises(ValueError, match=r"the checkpoint .* is not readable"):
        fastnc.sweep(MODEL, seeds=range(2), **options)
    fastnc.descend(MODEL, epochs=10, checkpoint=path)
    with pytest.raises(ValueError, match="is that of one run, not of a sweep"):
        fastnc.sweep(MODEL, seeds=range(2), **options)


def test_a_fresh_sweep_forgets_what_another_left_under_way(tmp_path):
    path = tmp_path / "run[1].npz"
    other = tmp_path / "run[1]-underway1.npz"
    run = fastnc.descend(MODEL, lr=1.0, epochs=10, checkpoint=other)
    # What only looks like a run of the sweep is somebody's own.
    mine = {run.save(tmp_path / name) for name in ("run[1]-1.npz", "run[1]-underway.npz")}
    kept = {file: file.read_bytes() for file in mine}
    runs = fastnc.sweep(MODEL, epochs=10, seeds=range(2), checkpoint=path)
    assert len(runs) == 2 and set(tmp_path.iterdir()) == {path, *mine}
    assert all(file.read_bytes() == before for file, before in kept.items())


def test_an_error_in_a_run_ends_the_sweep(monkeypatch):
    def refuse(self, i):
        raise MemoryError

    monkeypatch.setattr(Store, "part", refuse)
    with pytest.raises(MemoryError):
        fastnc.sweep(MODEL, epochs=10, seeds=range(3), threads=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": []}, "`model` must hold at least one value"),
        ({"model": "ulpm"}, "`model` must be a `fastnc.ULPM` or one of `fastnc.models`; got str"),
        ({"lr": []}, "`lr` must hold at least one value; got none"),
        ({"lr": [1.0, -1.0]}, "`lr` must be a positive number; got -1.0"),
        ({"lr": "5"}, "`lr` must be a positive number; got '5'"),
        ({"lr": None}, "`lr` must be a positive number; got None"),
        ({"seeds": 5}, "`seeds` must be several integers; got 5. Give one as a list"),
        ({"resume": True}, "`resume` must have a file to go on from; give `checkpoint`"),
        ({"checkpoint": "absent/run.npz"}, "`checkpoint` must be a file in a folder that exists"),
        ({"seeds": []}, "`seeds` must hold at least one value"),
        ({"seeds": [0, -1]}, "`seed` must be an integer of at least 0; got -1"),
        ({"replacement": True}, "`replacement` must have batches to be drawn; give `batch_size`"),
        ({"epochs": 0}, "`epochs` must be an integer of at least 1"),
        ({"threads": 0}, "`threads` must be an integer of at least 1; got 0"),
        ({"checkpoint_every": -1}, "`checkpoint_every` must be a number of at least 0"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        fastnc.sweep(**{"model": MODEL, "epochs": 10, "seeds": range(2), **arguments})


def test_rules_and_batch_sizes_in_that_order():
    R = fastnc.rules
    # Of the classes and rules for which `test_rules` and `test_compiled_batches` compile too.
    model = fastnc.ULPM(4, 10, 20)
    rules, sizes = [R.Momentum(1.0, nesterov=True), R.AdamW(1e-2)], [None, 20]
    runs = fastnc.sweep(model, rules=rules, batch_size=sizes, epochs=20, seeds=[3, 7], threads=2)
    expected = [(r, b, s) for r in rules for b in sizes for s in (3, 7)]
    for (rule, size, seed), run in zip(expected, runs, strict=True):
        alone = fastnc.descend(model, rule=rule, batch_size=size, epochs=20, seed=seed)
        assert_same_bits(run, alone)
        assert {**run.about, "provenance": None} == {**alone.about, "provenance": None}
    assert [len(group) for group in runs.settings().values()] == [2] * 4
    assert "Momentum(1, nesterov=True), batches of 20" in list(runs.settings())[1]


def test_a_stopped_sweep_of_rules_goes_on_with_the_same_bits(tmp_path):
    R, path = fastnc.rules, tmp_path / "sweep.npz"
    # Two that no compiled loop knows.
    rules = [R.SignDescent(1e-3), R.NormalizedDescent(1e-2)]
    options = {"rules": rules, "batch_size": 20, "epochs": 200, "seeds": range(2), "threads": 1}
    whole = fastnc.sweep(MODEL, **options)
    make, pressed = ComposedDescent.make, []

    def press(stepper, n):
        make(stepper, n)
        # Once: a second one is not held back.
        if stepper.epoch + n >= 50 and not pressed:
            pressed.append(stepper.epoch)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComposedDescent, "make", press)
        with pytest.raises(fastnc.Interrupted):
            fastnc.sweep(MODEL, **options, checkpoint=path)
    for run, other in zip(fastnc.sweep(MODEL, **options, checkpoint=path, resume=True), whole,
                          strict=True):  # fmt: skip
        assert_same_bits(run, other)


def test_flows_of_several_models_and_seeds_have_their_own_bits(tmp_path):
    models = [fastnc.ULPM(3, 2, 4), fastnc.models.weight_decay(3, 2, 4, 1e-2, 1e-2)]
    options = {"method": "flow", "log10_time": 3.0, "seeds": [0, 5], "snapshots": 4}
    path = tmp_path / "flows.npz"
    runs = fastnc.sweep(models, **options, threads=2, checkpoint=path)
    for run, (model, seed) in zip(runs, [(m, s) for m in models for s in (0, 5)], strict=True):
        alone = fastnc.flow(model, 3.0, seed, snapshots=4)
        assert run.W.tobytes() == alone.W.tobytes() and run.columns == alone.columns
        assert all(run[name].tobytes() == alone[name].tobytes() for name in run.columns)
    # All four are done: they are read, not made again.
    again = fastnc.sweep(models, **options, checkpoint=path, resume=True)
    assert [r.H.tobytes() for r in again] == [r.H.tobytes() for r in runs]
    with pytest.raises(ValueError, match="of another problem: its `log10_time` is"):
        fastnc.sweep(models, **{**options, "log10_time": 2.0}, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "jump"}, "`method` must be 'descend' or 'flow'; got 'jump'"),
        ({"method": "flow", "lr": 2.0}, "`lr` and method='flow' do not go together; leave it out"),
        ({"method": "flow", "rules": [fastnc.rules.Adam()]}, "`rules` and method='flow' do not"),
        ({"method": "flow", "batch_size": 3}, "`batch_size` and method='flow' do not go together"),
        ({"method": "flow", "log10_time": -1.0}, "`log10_time` must be a positive number"),
        ({"log10_time": 3.0}, "`log10_time` and method='descend' do not go together; leave it"),
    ],
)
def test_what_belongs_to_the_other_method(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fastnc.sweep(fastnc.ULPM(3, 2, 4), seeds=[0], **options)
