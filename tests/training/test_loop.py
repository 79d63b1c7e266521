"""Training past zero error, with a small network in VGG-13's place, beside a plain torch loop."""

import dataclasses
import os
import signal
import sys

import numpy as np
import pytest
import small_training
import torch
from torch.nn import functional as F

import fastnc
from fastnc._core.interrupts import Diverged, Interrupted
from fastnc.dynamics import loop
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.snapshot import COLUMNS
from fastnc.plots._style import settings
from fastnc.training import stepper
from fastnc.training.experiment import Experiment
from fastnc.training.loop import train
from fastnc.training.network import Pixels
from fastnc.training.stepper import TrainingStepper

QUICK = Experiment(feature_dim=12, batch_size=17, lr=0.02, snapshots=4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stepper, "network", small_training.network)


@pytest.fixture(scope="module")
def data():
    return small_training.dataset()


@pytest.fixture(scope="module")
def whole(data):
    """A run of 12 epochs without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper, "network", small_training.network)
        return train(data, 12, QUICK)


def same(first, second):
    """Whether two trajectories have the same bits."""
    assert first.columns == second.columns
    arrays = [(first[c], second[c]) for c in first.columns]
    arrays += [(getattr(first, name), getattr(second, name)) for name in ("W", "H", "y")]
    return all(a.tobytes() == b.tobytes() for a, b in arrays)


def test_it_is_the_plain_loop(data, whole):
    torch.manual_seed(0)
    net, pixels = small_training.network(feature_dim=12), Pixels(data.mean, data.std)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=0.0)
    for epoch in range(12):
        order = torch.from_numpy(np.random.default_rng((0, epoch)).permutation(60))
        for rows in order.split(15):
            loss = F.cross_entropy(net(pixels(data.train_images[rows])), data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    W = net.classifier[-1].weight.detach().numpy()
    # 48 steps of float32 rounding, each of some 1e-7 of weights of size 1, while they converge.
    np.testing.assert_allclose(whole.W, W, rtol=0, atol=2e-5)
    assert np.abs(W).max() > 0.5 and loss.item() < 1.0


def test_the_run_is_a_trajectory_like_any_other(data, whole):
    assert whole["epoch"].tolist() == snapshot_epochs(12, 4)
    assert set(COLUMNS) <= set(whole.columns) and whole.columns[0] == "epoch"
    assert whole.H.shape == (60, 12) and np.array_equal(whole.y, data.train_labels.numpy())
    assert whole["train_accuracy"][0] < 0.3 and whole["train_accuracy"][-1] > 0.9
    assert whole["within_class"][-1] < 0.7 * whole["within_class"][0]
    again = fastnc.collapse_metrics(whole.H, whole.y).within_class
    # The same features, in float64 sums.
    assert whole["within_class"][-1] == pytest.approx(again, rel=1e-12)
    assert len(fastnc.plots.figure3(whole).axes) == 6


@pytest.mark.parametrize(
    "experiment",
    [
        QUICK,
        Experiment(feature_dim=12, batch_size=17, batch_norm=True, dropout=0.3, snapshots=4,
                   schedule="CosineAnnealingLR"),
        Experiment(feature_dim=12, batch_size=60, schedule="ReduceLROnPlateau", seed=3, snapshots=4,
                   schedule_args={"patience": 0, "factor": 0.5, "threshold": 0.5}),
        Experiment(batch_size=17, batch_norm=True, head="linear", feature_scale=0.3, lr=0.05,
                   classifier_scale=2.0, augment="shift-flip", schedule="loss-scaled", snapshots=4,
                   schedule_args={"decrease": 0.5}),
    ],
    ids=["plain", "dropout and cosine", "plateau", "linear and loss-scaled"],
)  # fmt: skip
def test_ctrl_c_anywhere_and_resumed_ends_in_the_same_bits(tmp_path, data, experiment, monkeypatch):
    straight = train(data, 12, experiment)
    batches = 12 * -(-60 // experiment.batch_size)
    made = TrainingStepper._batch
    # A slice of one batch: a stop is seen after it.
    monkeypatch.setattr(loop, "_SECONDS_A_SLICE", 0.0)
    for stop_at in (0, 1, batches // 3, batches - 2):

        def press(self, stop_at=stop_at):
            made(self)
            if self.epoch * self._n_batches + self.step == stop_at + 1:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(TrainingStepper, "_batch", press)
        sentence = (
            r"stopped by Ctrl-C at epoch \d+ of 12; the state is in '.*checkpoint.pt': resume"
        )
        with pytest.raises(Interrupted, match=sentence) as caught:
            train(data, 12, experiment, out=tmp_path, resume=True, checkpoint_every=1e9)
        kept = caught.value.run
        assert kept["epoch"].tolist() == straight["epoch"][: len(kept)].tolist()
    monkeypatch.setattr(TrainingStepper, "_batch", made)
    assert same(train(data, 12, experiment, out=tmp_path, resume=True), straight)
    if experiment.schedule not in ("constant", "loss-scaled"):
        assert straight["lr"][-1] < 0.7 * straight["lr"][0]
    # A finished run is only measured again.
    assert same(train(data, 12, experiment, out=tmp_path, resume=True), straight)


def test_a_run_may_be_prolonged_and_not_shortened(tmp_path, data, whole):
    train(data, 7, QUICK, out=tmp_path)
    longer = train(data, 12, QUICK, out=tmp_path, resume=True)
    assert same(longer, whole)
    with pytest.raises(ValueError, match=r"`epochs` must be at least the checkpoint's; it is at"):
        train(data, 11, QUICK, out=tmp_path, resume=True)


def test_a_callback_sees_each_measurement_and_may_stop(data, whole):
    seen = []
    run = train(data, 12, QUICK, callback=lambda row: seen.append(row) or row["epoch"] == 3)
    assert [row["epoch"] for row in seen] == run["epoch"].tolist() == [0, 1, 2, 3]
    assert run["log_loss"].tolist() == whole["log_loss"][:4].tolist()
    assert run.H.shape == (60, 12) and run.about["epochs"] == 3


def test_divergence_is_caught_and_never_saved(tmp_path, data):
    train(data, 1, QUICK, out=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    wild = Experiment(feature_dim=12, batch_size=17, lr=1e6, snapshots=4)
    sentence = r"not finite in epoch \d+: `lr`=1e\+06 is too large .* Take a smaller one"
    with pytest.raises(Diverged, match=sentence) as caught:
        train(data, 40, wild, out=tmp_path, checkpoint_every=0)
    assert np.isfinite(caught.value.run["log_loss"]).all()
    # Checkpoints of the diverging run, if any, were finite.
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(x.isfinite().all() for x in state["net"].values())
    poisoned = small_training.dataset()
    object.__setattr__(poisoned, "mean", float("nan"))
    (tmp_path / "checkpoint.pt").write_bytes(before)
    with pytest.raises((Diverged, ValueError)):
        train(poisoned, 3, QUICK, out=tmp_path, checkpoint_every=0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_torchs_switches_and_numbers_are_put_back(data, whole):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    switches = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )
    again = train(data, 12, QUICK)
    assert torch.equal(torch.rand(3), want) and same(again, whole)
    assert switches == (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


def test_seed_and_precision_matter(data, whole):
    other = train(data, 1, Experiment(feature_dim=12, batch_size=17, lr=0.02, snapshots=4, seed=1))
    assert other["log_loss"][0] != whole["log_loss"][0]
    half = Experiment(feature_dim=12, batch_size=17, lr=0.02, snapshots=4, precision="bfloat16")
    run = train(data, 1, half)
    assert run["log_loss"][0] == whole["log_loss"][0]
    # Measured in float32 after an epoch in bfloat16, of eight bits.
    assert run["log_loss"][1] == pytest.approx(whole["log_loss"][1], abs=0.05)
    assert run["log_loss"][1] != whole["log_loss"][1]


def test_the_step_may_be_compiled(data, whole, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module: asked.append(module) or module)
    assert same(train(data, 12, QUICK, compile=True), whole)
    assert len(asked) == 1 and isinstance(asked[0], torch.nn.Module)


def test_tensorboard_where_it_is_missing_or_has_no_folder(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"`tensorboard` is not installed; run `pip install"):
        train(data, 1, QUICK, out=tmp_path, tensorboard=True)
    with pytest.raises(ValueError, match=r"`tensorboard` must have a folder .*; give `out`"):
        train(data, 1, QUICK, tensorboard=True)


def test_tensorboard_gets_every_measurement(tmp_path, data, monkeypatch):
    from types import SimpleNamespace

    written = []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, epoch):
            written.append((name, value, epoch))

        def close(self):
            written.append("closed")

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = train(data, 2, QUICK, out=tmp_path, tensorboard=True)
    assert written[-1] == "closed"
    found = [value for name, value, _ in written[:-1] if name == "collapse/log_loss"]
    assert found == run["log_loss"].tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.0}, r"`lr` must be a positive number; got 0.0"),
        ({"momentum": 1.0}, r"`momentum` must lie in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, r"`dropout` must lie in \[0, 1\); got -0.1"),
        ({"dropout": None}, r"`dropout` must lie in \[0, 1\); got None"),
        ({"batch_size": 0}, r"`batch_size` must be an integer of at least 1; got 0"),
        ({"batch_size": 1, "batch_norm": True}, r"`batch_size` must be at least 2 with batch"),
        ({"feature_dim": 0}, r"`feature_dim` must be an integer of at least 1; got 0"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0; got -1"),
        ({"snapshots": 0}, r"`snapshots` must be an integer of at least 1; got 0"),
        ({"head": "linera"}, r"`head` must be 'own' or 'linear'; got 'linera'"),
        ({"augment": "flip"}, r"`augment` must be 'none', 'shift' or 'shift-flip'; got 'flip'"),
        ({"feature_scale": 0.0}, r"`feature_scale` must be a positive number; got 0.0"),
        ({"classifier_scale": -1.0}, r"`classifier_scale` must be a positive number; got -1.0"),
        (
            {"precision": "float16"},
            r"`precision` must be 'float32', .* or 'bfloat16'; got 'float16'",
        ),
    ],
)
def test_experiments_that_make_no_sense(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Experiment(**change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"schedule": "Sometimes"},
            r"`schedule` must be 'constant', 'loss-scaled' or one of .*StepLR",
        ),
        ({"schedule_args": {"gamma": 1}}, r"`schedule_args` must be empty with a constant rate"),
        ({"schedule": "StepLR"}, r"`schedule_args` \{\} do not suit StepLR: .*step_size"),
        # These two are built without a word, and refuse to be stepped.
        ({"schedule": "StepLR", "schedule_args": {"step_size": 0}}, r"do not suit StepLR: .*zero"),
        (
            {"schedule": "OneCycleLR", "schedule_args": {"max_lr": 0.1, "total_steps": 2}},
            r"do not suit OneCycleLR: Tried to step 3 times",
        ),
    ],
)
def test_schedules_that_make_no_sense(data, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(data, 5, Experiment(feature_dim=12, **change))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, r"`epochs` must be an integer of at least 1; got 0"),
        ({"checkpoint_every": -1.0}, r"`checkpoint_every` must be a number of at least 0; got -1"),
        ({"checkpoint_every": float("nan")}, r"`checkpoint_every` must be .*; got nan"),
        ({"device": "tpu"}, r"`device` must be 'cpu' or 'cuda'; got 'tpu'"),
        ({"out": "absent"}, r"`out` must be an existing folder; got 'absent'\. Make it first"),
        ({"resume": True}, r"`resume` must have a folder to go on from; give `out`"),
        ({"device": "cuda"}, r"`device` 'cuda' must have a CUDA device; torch sees none"),
    ],
)
def test_calls_that_make_no_sense(data, options, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        train(data, experiment=QUICK, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"experiment": {"lr": 0.1}}, r"`experiment` must be an Experiment; got dict"),
        ({"out": 3}, r"`out` must be a path; got int"),
        ({"start": 3}, r"`start` must be a path; got int"),
        ({"callback": 3}, r"`callback` must be a function; got 3"),
        ({"data": 3}, r"`data` must be a `fastnc.training.Dataset` or the folder .*; got int"),
        *(
            ({name: "no"}, rf"`{name}` must be True or False; got 'no'")
            for name in ("resume", "deterministic", "compile", "tensorboard", "depth", "progress")
        ),
    ],
)
def test_arguments_of_another_kind(data, options, sentence):
    with pytest.raises(TypeError, match=sentence):
        train(**{"data": data, "epochs": 1, "experiment": QUICK, **options})


def test_batches_of_one_image_are_not_normalised():
    """Of 59 images by twos one stands alone: where maps had one place, torch's own words came."""
    odd, pairs = small_training.dataset(59), Experiment(feature_dim=12, batch_size=2)
    said = "`batch_size` must leave two .*; got 2 for 59 images, whose smallest batch has 1"
    with pytest.raises(ValueError, match=said):
        train(odd, 1, dataclasses.replace(pairs, batch_norm=True))
    assert len(train(odd, 1, pairs)) and len(
        train(small_training.dataset(58), 1, dataclasses.replace(pairs, batch_norm=True))
    )


def test_experiments_of_another_kind(data):
    with pytest.raises(TypeError, match=r"`schedule_args` must be a dict of .*; got None"):
        Experiment(schedule_args=None)
    with pytest.raises(TypeError, match=r"`batch_norm` must be True or False; got 2"):
        Experiment(batch_norm=2)
    with pytest.raises(ValueError, match=r"`seed` must be below 2\^64, as torch's are; got 2951"):
        Experiment(seed=1 << 68)
    with pytest.raises(ValueError, match=r"`schedule` must be 'constant', .*; got 3"):
        train(data, 1, Experiment(feature_dim=12, schedule=3))


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "made elsewhere": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", [*MODES, "double"])
def test_modes_of_the_caller(data, mode):
    """They ended in torch's own words, or would have changed the run."""
    alone = train(data, 3, QUICK)
    if mode == "double":
        torch.set_default_dtype(torch.float64)
        try:
            assert same(train(data, 3, QUICK), alone)
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        return
    with MODES[mode]():
        grad = torch.is_grad_enabled()
        assert same(train(data, 3, QUICK), alone)
        assert torch.is_grad_enabled() == grad
        assert torch.empty(1).is_meta == (mode == "made elsewhere")


def test_numbers_of_numpy_in_a_schedule_can_be_read_again(data, tmp_path):
    """The checkpoint was said to be damaged; a function was refused after the last epoch."""
    gamma = Experiment(schedule="ExponentialLR", schedule_args={"gamma": np.float64(0.9)})
    assert type(gamma.schedule_args["gamma"]) is float
    with pytest.raises(TypeError, match=r"`schedule_args` must hold JSON values; got .*lambda"):
        Experiment(schedule="LambdaLR", schedule_args={"lr_lambda": lambda epoch: 0.9})


def test_a_network_that_has_died_is_measured(data, monkeypatch):
    """Features of 0 ended in a division by zero."""
    assert QUICK.feature_dim > 0
    real = TrainingStepper.measure

    def dead(self):
        with torch.no_grad():
            for p in list(self.net.parameters())[:-2]:
                p.zero_()
        return real(self)

    monkeypatch.setattr(TrainingStepper, "measure", dead)
    run = train(data, 1, QUICK)
    assert np.isinf(run["balance"]).all()


def test_schedules_with_rates_of_their_own():
    """`lr` and `momentum` beside them changed nothing, and stood in titles and in messages."""
    own = {"feature_dim": 12, "batch_size": 30, "schedule": "OneCycleLR"}
    args = {"max_lr": 0.05, "total_steps": 20}
    for name in ("lr", "momentum"):
        with pytest.raises(ValueError, match=f"`{name}` must be left out with schedule='OneCycle"):
            Experiment(**own, schedule_args=args, **{name: 0.5})
    Experiment(**own, schedule_args={**args, "cycle_momentum": False}, momentum=0.5)
    data = small_training.dataset()
    run = train(data, 3, Experiment(**own, schedule_args=args))
    assert "lr=" not in settings(run) and "OneCycleLR" in settings(run)
    far = {"max_lr": 1e30, "total_steps": 20, "div_factor": 1.0}
    with pytest.raises(Diverged, match=r"the step size 1e\+30 of `schedule`='OneCycleLR' is too"):
        train(data, 3, Experiment(**own, schedule_args=far))


def test_the_title_of_a_started_run_says_so(tmp_path, data):
    train(data, 2, QUICK, out=tmp_path)
    run = train(data, 3, QUICK, start=tmp_path / "checkpoint.pt")
    assert "started from another run's checkpoint" in settings(run)
