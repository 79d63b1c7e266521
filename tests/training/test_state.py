"""A training's checkpoint: whole or as it was, refused where it does not fit."""

import dataclasses
import errno
import os
import random
import re
import stat

import pytest
import small_training
import torch
from hostile import Bomb

from fastnc.training import depth, stepper
from fastnc.training.loop import Experiment, train
from fastnc.training.state import State

QUICK = Experiment(feature_dim=12, batch_size=17, lr=0.02, snapshots=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stepper, "network", small_training.network)


@pytest.fixture
def stopped(tmp_path):
    """The checkpoint of a run of one epoch."""
    train(small_training.dataset(), 1, QUICK, out=tmp_path)
    return tmp_path / "checkpoint.pt"


def resumed(path, data=None, experiment=QUICK):
    data = small_training.dataset() if data is None else data
    return train(data, 2, experiment, out=path.parent, resume=True)


def test_a_state_comes_back(tmp_path):
    rows = [{"epoch": 0, "log_loss": float("nan")}, {"epoch": 1, "log_loss": -1.25}]
    net = {"w": torch.arange(3.0)}
    path = tmp_path / "checkpoint.pt"
    State({"lr": 0.1}, 3, 7, torch.tensor(2.5), net, {"state": {}}, {"last_epoch": 3}, rows).save(
        path
    )
    found = State.load(path, {"lr": 0.1}, CPU)
    assert (found.epoch, found.step, float(found.loss_sum)) == (3, 7, 2.5)
    assert torch.equal(found.net["w"], net["w"]) and found.schedule == {"last_epoch": 3}
    assert repr(found.rows) == repr(rows)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.5}, r"its `lr` is 0.02, this run's is 0.5. Give the same options, or another"),
        ({"batch_norm": True}, r"its `batch_norm` is False, this run's is True"),
        ({"seed": 4}, r"its `seed` is 0, this run's is 4"),
        ({"schedule": "CosineAnnealingLR"}, r"its `schedule` is 'constant', this run's is 'Cosine"),
    ],
)
def test_another_experiments_checkpoint_is_refused_and_kept(stopped, change, sentence):
    before = stopped.read_bytes()
    with pytest.raises(ValueError, match=sentence):
        resumed(stopped, experiment=Experiment(**{**vars(QUICK), **change}))
    assert stopped.read_bytes() == before


def test_a_changed_data_set_is_refused(stopped):
    before = stopped.read_bytes()
    data = small_training.dataset()
    data.train_images[11, 0, 2, 2] += 1
    sentence = r"its `data` is '\w+', this run's is '\w+'. The images or labels have changed"
    with pytest.raises(ValueError, match=sentence):
        resumed(stopped, data)
    assert stopped.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"not a checkpoint at all",
        lambda b: b[:2000] + bytes(x ^ 0xFF for x in b[2000:9000]) + b[9000:],
        lambda b: b[:-30] + b"\0" * 30,
    ],
    ids=["half", "empty", "text", "flipped", "end"],
)
def test_a_damaged_checkpoint_is_refused_and_untouched(stopped, damage):
    damaged = damage(stopped.read_bytes())
    stopped.write_bytes(damaged)
    sentence = (
        r"the checkpoint '.*checkpoint.pt' is not readable \(.*\); it is damaged or of another"
    )
    with pytest.raises(ValueError, match=sentence):
        resumed(stopped)
    assert stopped.read_bytes() == damaged


def bits(x):
    """Everything in a state, to compare with, NaNs included."""
    if isinstance(x, torch.Tensor):
        return x.dtype, tuple(x.shape), x.numpy().tobytes()
    if isinstance(x, dict):
        return [(key, bits(value)) for key, value in x.items()]
    return [bits(value) for value in x] if isinstance(x, (list, tuple)) else repr(x)


def test_flipped_bits_are_refused_or_harmless(stopped):
    whole, identity = stopped.read_bytes(), torch.load(stopped, weights_only=True)["identity"]
    expected = bits(vars(State.load(stopped, identity, CPU)))
    # Anywhere, and each bit of the archive's directory of its first two parts, which no sum of
    # the archive tells of: as an "empty folder" a tensor would come back as zeros.
    first = whole.index(b"PK\x01\x02")
    places = random.Random(0).sample(range(8 * len(whole)), 200)
    places += range(8 * first, 8 * (first + 120))
    harmless = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        stopped.write_bytes(damaged)
        try:
            found = State.load(stopped, identity, CPU)
        except ValueError as error:
            assert re.search(r"is not readable \(.*\); it is damaged .* changed\.$", str(error))
        else:
            harmless += 1
            assert bits(vars(found)) == expected
    # Only what says that there is a sum may be lost, and then the archive's own are taken.
    assert harmless <= 8 * len("fastnc sha256 ")


def test_a_checkpoint_without_a_seal_is_read(stopped):
    # As they were before there was one: torch's archive alone, under its own sums.
    whole = stopped.read_bytes()
    held = torch.load(stopped, weights_only=True)
    with open(stopped, "wb") as file:
        torch.save(held, file)
    assert len(stopped.read_bytes()) == len(whole) - len("fastnc sha256 ") - 64
    assert bits(vars(State.load(stopped, held["identity"], CPU))) == bits(held)
    assert resumed(stopped)["epoch"].tolist() == [0, 1, 2]


def test_pickled_code_is_not_run(stopped, tmp_path):
    torch.save({"identity": Bomb(tmp_path / "sprung")}, stopped)
    with pytest.raises(ValueError, match=r"is not readable"):
        resumed(stopped)
    assert not (tmp_path / "sprung").exists()


def test_other_things_that_torch_can_load(stopped):
    for other in ({"epoch": 3}, [1, 2], torch.ones(3)):
        torch.save(other, stopped)
        with pytest.raises(
            ValueError, match=r"is not readable \(.*\); it is damaged or of another"
        ):
            resumed(stopped)


@pytest.mark.parametrize("what", ["the checkpoint", "run.csv"])
def test_a_full_disk_leaves_the_last_checkpoint(stopped, monkeypatch, what):
    before = stopped.read_bytes()
    table = (stopped.parent / "run.csv").stat().st_size

    def full(descriptor):
        # The table of a few rows is a few thousand bytes, the checkpoint much larger.
        found = os.fstat(descriptor)
        small = found.st_size < 3 * table
        if stat.S_ISREG(found.st_mode) and small == (what == "run.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert len(before) > 4 * table
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"written \(No space left on device\); .* Make room"):
        resumed(stopped)
    assert stopped.read_bytes() == before
    assert [p.name for p in stopped.parent.iterdir() if p.suffix == ".part"] == []
    stopped.unlink()
    with pytest.raises(OSError, match=f"{what}.* could not be written"):
        train(small_training.dataset(), 1, QUICK, out=stopped.parent)


def test_torchs_own_writer_on_a_full_disk(stopped, monkeypatch):
    def full(state, file):
        file.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    before = stopped.read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"\(PytorchStreamWriter failed.*\); the one before is whole"):
        resumed(stopped)
    assert stopped.read_bytes() == before


def test_a_started_run_has_its_own_profiles_and_resumes_without_its_start(tmp_path):
    """Its `depth.json` kept another run's tables, and its checkpoint forgot where it began."""
    data = small_training.dataset()
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    train(data, 3, QUICK, out=first, depth=True)
    assert list(depth.load(first)) == [0, 1, 3]
    train(data, 9, QUICK, out=first, resume=True, depth=True)
    # The end of the shorter run is this one's middle, and its middle is nothing more.
    assert list(depth.load(first)) == [0, 3, 9]
    train(data, 4, QUICK, out=second, depth=True)
    options = {"start": first / "checkpoint.pt", "out": second, "depth": True}
    faster = dataclasses.replace(QUICK, lr=0.03)
    train(data, 10, faster, **options, callback=lambda row: row["epoch"] >= 10)
    assert list(depth.load(second)) == [10]
    again = train(data, 11, faster, out=second, resume=True)
    assert again.about["start"] == train(data, 12, faster, out=second, resume=True).about["start"]


def test_what_is_too_short_to_start_from(tmp_path):
    path = tmp_path / "short.pt"
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"short.pt' is not readable \(.*\); it is damaged"):
        train(small_training.dataset(), 2, QUICK, start=path)


def test_another_number_of_classes_is_another_run(stopped):
    data = dataclasses.replace(small_training.dataset(), n_classes=12)
    with pytest.raises(ValueError, match="its `n_classes` is 10, this run's is 12"):
        resumed(stopped, data)


def test_test_images_of_a_class_that_is_not_trained():
    data = small_training.dataset()
    few = data.train_labels != 3
    with pytest.raises(ValueError, match="got class 3, of which `train_labels` has none"):
        dataclasses.replace(
            data, train_images=data.train_images[few], train_labels=data.train_labels[few]
        )


def test_a_refused_resume_leaves_the_profiles_and_a_new_run_does_not(tmp_path):
    """A refusal removed tables, and a run without profiles took over those it found."""
    data = small_training.dataset()
    train(data, 9, QUICK, out=tmp_path, depth=True)
    before = (tmp_path / "depth.json").read_bytes()
    with pytest.raises(ValueError, match="`epochs` must be at least the checkpoint's"):
        train(data, 3, QUICK, out=tmp_path, resume=True, depth=True)
    assert (tmp_path / "depth.json").read_bytes() == before
    train(data, 1, dataclasses.replace(QUICK, seed=1), out=tmp_path)
    assert depth.load(tmp_path) == {}
