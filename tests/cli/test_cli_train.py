"""`fastnc train` as a user types it, on files of sixty small images."""

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_training
import torch
from typer.testing import CliRunner

import fastnc
from fastnc.cli import build
from fastnc.training import network

HERE = Path(__file__).parent.parent
OPTIONS = ["--image-size", "6", "--feature-dim", "12", "--batch-size", "20", "--lr", "0.02"]
OPTIONS += ["--snapshots", "4"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with small files, and the small network in VGG-13's place."""
    small_training.put_in_place(monkeypatch.setattr)
    small_training.write_files(tmp_path / "data")
    return tmp_path / "data"


def invoke(root, *arguments):
    return CliRunner().invoke(
        build(), ["train", "--data", str(root), *OPTIONS, *map(str, arguments)]
    )


@pytest.mark.usefixtures("rendered")
def test_writes_the_figure_the_table_the_run_and_the_checkpoint(root, tmp_path):
    out = tmp_path / "new"
    done = invoke(root, "--epochs", 12, "--out", out)
    assert done.exit_code == 0, done.output
    for name in ("figure3.png", "figure3.pdf", "run.npz", "run.csv", "checkpoint.pt"):
        assert (out / name).stat().st_size > 1000 and name in done.output
    assert "epoch 12: training accuracy 1.0000, test" in done.output
    assert " of 20 images, loss" in done.output
    run = fastnc.Trajectory.load(out / "run.npz")
    rows = list(csv.DictReader((out / "run.csv").read_text().splitlines()))
    assert [float(row["nc1"]) for row in rows] == run["nc1"].tolist()
    assert run["epoch"][-1] == 12 and run.about["kind"] == "training"
    assert run.H.shape == (60, 12)

    longer = invoke(root, "--epochs", 20, "--out", out, "--resume")
    assert longer.exit_code == 0 and "starting afresh" not in longer.output
    assert fastnc.Trajectory.load(out / "run.npz")["epoch"][-1] == 20
    # Nothing is left to be profiled: it ended in a sentence about a function's argument.
    late = invoke(root, "--epochs", 20, "--out", out, "--resume", "--depth")
    assert late.exit_code == 0 and "profiles of --depth there are none: the run is" in late.output
    late = invoke(root, "--epochs", 21, "--out", out, "--resume", "--depth")
    assert "there are epoch 21: the run is past" in late.output and (out / "depth.png").exists()


def test_resume_before_the_first_checkpoint_starts_afresh_and_says_so(root, tmp_path):
    done = invoke(root, "--epochs", 2, "--out", tmp_path / "o", "--resume")
    assert (
        done.exit_code == 0 and f"No checkpoint in {tmp_path / 'o'}: starting afresh" in done.output
    )


def test_without_resume_an_earlier_checkpoint_is_kept_aside(root, tmp_path):
    out = tmp_path / "o"
    assert invoke(root, "--epochs", 2, "--out", out).exit_code == 0
    before = (out / "checkpoint.pt").read_bytes()
    done = invoke(root, "--epochs", 2, "--seed", 1, "--out", out)
    assert done.exit_code == 0 and f"are now in {out / 'earlier-1'}." in done.output
    assert (out / "earlier-1" / "checkpoint.pt").read_bytes() == before
    # A run that never begins takes no place.
    for mistake in ("--schedule", "StepLR"), ("--schedule-args", '{"gamma": 1}'):
        assert invoke(root, "--epochs", 2, "--out", out, *mistake).exit_code == 2
    assert not (out / "earlier-2").exists()
    assert (out / "checkpoint.pt").exists()


def test_tensorboard_begins_afresh(root, tmp_path, monkeypatch):
    """A second run added its curves to those of the first; one that was refused made the folder."""

    class Writer:
        def __init__(self, folder):
            Path(folder).mkdir(exist_ok=True)
            (Path(folder) / f"events.{len(list(Path(folder).iterdir()))}").write_text("")

        def add_scalar(self, *_):
            pass

        def close(self):
            pass

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    out = tmp_path / "o"
    options = ["--epochs", 1, "--tensorboard", "--out", out]
    assert invoke(root, *options, "--start", "gone.pt").exit_code == 2 and not out.exists()
    assert invoke(root, *options).exit_code == 0
    assert invoke(root, *options).exit_code == 0
    assert invoke(root, *options[2:], "--epochs", 2, "--resume").exit_code == 0
    assert len(list((out / "earlier-1" / "tensorboard").iterdir())) == 1
    assert len(list((out / "tensorboard").iterdir())) == 2


def test_one_epoch_has_no_figure_and_everything_else(root, tmp_path):
    out = tmp_path / "o"
    done = invoke(root, "--epochs", 1, "--out", out, "--peel", 20)
    assert done.exit_code == 0, done.output
    assert "No figure3.png: `run` must reach epoch 2" in done.output
    assert (out / "peeled.npz").exists() and "epoch 1: training accuracy" in done.output


def test_peel_goes_on_without_the_network(root, tmp_path):
    out = tmp_path / "o"
    done = invoke(root, "--epochs", 12, "--out", out, "--peel", 200)
    assert done.exit_code == 0, done.output
    run = fastnc.Trajectory.load(out / "run.npz")
    peeled = fastnc.Trajectory.load(out / "peeled.npz")
    # The same features, in float64.
    assert peeled["within_class"][0] == pytest.approx(run["within_class"][-1], rel=1e-9)
    assert peeled["epoch"][-1] == 200 and (out / "peeled.png").exists()
    longer = invoke(root, "--epochs", 13, "--out", out, "--resume")
    assert "peeled.npz goes on from an earlier end of this run: --peel" in longer.output


def test_a_run_may_start_at_anothers_checkpoint(root, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert invoke(root, "--epochs", 5, "--out", first).exit_code == 0
    begin = ["--start", first / "checkpoint.pt", "--schedule", "loss-scaled", "--batch-size", 30]
    done = invoke(root, "--epochs", 12, "--out", second, *begin)
    assert done.exit_code == 0, done.output
    runs = [fastnc.Trajectory.load(folder / "run.npz") for folder in (first, second)]
    # What was measured before is kept, but for the last epoch, which is not on the longer grid.
    assert runs[1]["epoch"].tolist() == [0, 1, 2, 3, 6, 10, 12]
    assert runs[1]["log_loss"][:4].tolist() == runs[0]["log_loss"][:4].tolist()
    assert runs[1].about["schedule"] == "loss-scaled" and "start" in runs[1].about
    again = invoke(root, "--epochs", 12, "--out", second, *begin, "--resume")
    assert again.exit_code == 0 and "afresh" not in again.output
    # Without `--resume` it starts again, and what was there is moved aside.
    last = (second / "checkpoint.pt").read_bytes()
    done = invoke(root, "--epochs", 8, "--out", second, *begin)
    assert done.exit_code == 0 and "are now in" in done.output
    assert (second / "earlier-1" / "checkpoint.pt").read_bytes() == last


def test_a_start_in_the_folder_that_it_would_be_moved_from(root, tmp_path):
    """It was told that there is no such file."""
    out = tmp_path / "o"
    assert invoke(root, "--epochs", 1, "--out", out).exit_code == 0
    before = (out / "checkpoint.pt").read_bytes()
    done = invoke(root, "--epochs", 2, "--out", out, "--start", out / "checkpoint.pt")
    assert done.exit_code == 2 and "`--start` must not be in `--out`, whose" in done.output
    assert (out / "checkpoint.pt").read_bytes() == before and not (out / "earlier-1").exists()


def test_a_start_that_does_not_fit(root, tmp_path):
    out = tmp_path / "first"
    assert invoke(root, "--epochs", 2, "--out", out).exit_code == 0
    start = ["--start", out / "checkpoint.pt", "--out", tmp_path / "second"]
    done = invoke(root, "--epochs", 5, *start, "--feature-dim", 13)
    assert done.exit_code == 2 and "must be a checkpoint of the same network" in done.output
    done = invoke(root, "--epochs", 5, *start, "--subset", 30)
    assert done.exit_code == 2 and "The images or labels have changed" in done.output
    done = invoke(root, "--epochs", 1, *start)
    assert done.exit_code == 2 and "`epochs` must be at least the checkpoint's" in done.output


def test_killed_with_every_option_and_resumed_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, str(HERE / "killed_training.py"), str(tmp_path)]
    # Numba's OpenMP layer ends a process that forks; this layer allows it.
    few = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    few["NUMBA_THREADING_LAYER"] = "workqueue"
    done = subprocess.run(command, capture_output=True, text=True, env=few)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = re.findall(r": (\d+) kills, the same bits$", done.stdout, re.MULTILINE)
    assert kills == ["4", "6", "4", "3", "2"], done.stdout


def test_ctrl_c_saves_and_says_how_to_go_on(root, tmp_path):
    out = tmp_path / "o"
    arguments = ["train", "--data", str(root), *OPTIONS, "--epochs", "1000000", "--out", str(out)]
    command = [sys.executable, str(HERE / "small_training.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "run.csv").exists() and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert "stopped by Ctrl-C at epoch" in errors and "resume" in errors
    assert "The measurements so far are in" in told and "and --resume." in told
    assert (out / "figure3.png").exists() or "No figure3.png: " in told
    assert torch.load(out / "checkpoint.pt", weights_only=True)["rows"]
    # Those of an earlier end stayed beside the new table.
    rows = list(csv.DictReader((out / "run.csv").read_text().splitlines()))
    assert len(fastnc.Trajectory.load(out / "run.npz")) == len(rows)


def test_a_second_ctrl_c_says_what_was_saved(root, tmp_path, monkeypatch):
    """It ends the run at once, in the middle of an epoch; the checkpoint before it is whole."""
    options = ["--epochs", "5", "--checkpoint-every", "0", "--batch-size", "10"]
    assert invoke(root, *options, "--out", tmp_path / "whole").exit_code == 0
    step, made = torch.optim.SGD.step, []

    def interrupted(*arguments, **options):
        step(*arguments, **options)
        made.append(1)
        if len(made) == 15:
            # The first one waits for the end of the slice, the second one does not.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(torch.optim.SGD, "step", interrupted)
    out = tmp_path / "cut"
    stopped = invoke(root, *options, "--out", out)
    signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == 130, stopped.output
    assert stopped.output.endswith(
        f"fastnc: stopped by Ctrl-C. {str(out)!r} holds checkpoint.pt, run.csv. "
        "Go on with the same command and --resume.\n"
    )
    assert invoke(root, *options, "--out", out, "--resume").exit_code == 0
    whole, cut = (torch.load(tmp_path / o / "checkpoint.pt") for o in ("whole", "cut"))
    assert whole["net"].keys() == cut["net"].keys()
    assert all(torch.equal(x, cut["net"][name]) for name, x in whole["net"].items())
    assert (tmp_path / "whole" / "run.csv").read_bytes() == (out / "run.csv").read_bytes()


@pytest.mark.parametrize("name", ["checkpoint.pt", "run.csv", "run.npz"])
def test_a_training_that_cannot_be_saved_is_saved_elsewhere(root, tmp_path, monkeypatch, name):
    """The network is nowhere else."""
    replace, out, elsewhere = os.replace, tmp_path / "o", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def full(source, target):
        if Path(target) == out / name and (name != "run.csv" or (out / name).exists()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    done = invoke(root, "--epochs", 3, "--out", out)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert name in done.output and "No space left on device" in done.output
    (kept,) = elsewhere.glob("*/run.npz")
    assert f"The run itself is in {str(kept)!r}" in done.output
    assert len(fastnc.Trajectory.load(kept)) >= 1
    if name != "run.npz":
        # Given its place, the training goes on from it.
        (state,) = elsewhere.glob("*/checkpoint.pt")
        monkeypatch.setattr(os, "replace", replace)
        out.mkdir(exist_ok=True)
        state.replace(out / "checkpoint.pt")
        assert invoke(root, "--epochs", 3, "--out", out, "--resume").exit_code == 0


def test_divergence_is_told(root, tmp_path):
    done = invoke(root, "--epochs", 50, "--out", tmp_path / "o", "--lr", 1e8)
    assert done.exit_code == 1 and "`lr`=1e+08 is too large for this network" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", 0], "`epochs` must be an integer of at least 1; got 0"),
        (["--lr", "nan"], "`lr` must be a positive number; got nan"),
        (["--momentum", 1], "`momentum` must lie in [0, 1); got 1.0"),
        (["--dropout", 1], "`dropout` must lie in [0, 1); got 1.0"),
        (["--subset", 5], "`subset` must be an integer of at least 10; got 5"),
        (["--image-size", 0], "`image_size` must be an integer of at least 1; got 0"),
        (["--feature-dim", 0], "`feature_dim` must be an integer of at least 1"),
        (["--batch-size", 0], "`batch_size` must be an integer of at least 1"),
        (["--dataset", "FashonMNIST"], "The nearest name is FashionMNIST"),
        (["--schedule", "loss-scale"], "The nearest name is loss-scaled"),
        (["--schedule", "StepRL"], "The nearest name is StepLR"),
        (["--schedule", "loss-scaled", "--schedule-args", '{"a": 1}'], "do not suit loss-scaled"),
        (["--augment", "turn"], "--augment"),
        (["--head", "linera"], "--head"),
        (["--label-noise", 1], "`label_noise` must lie in [0, 1); got 1.0"),
        (["--imbalance", 0], "`imbalance` must be a number of at least 1; got 0.0"),
        (["--feature-scale", 0], "`feature_scale` must be a positive number; got 0.0"),
        (["--classifier-scale", -2], "`classifier_scale` must be a positive number; got -2.0"),
        (["--start", "nowhere.pt"], "`start` must be a checkpoint; there is no 'nowhere.pt'"),
        (["--seed", -1], "`seed` must be an integer of at least 0"),
        (["--checkpoint-every", -1], "`checkpoint_every` must be a number of at least 0"),
        (["--schedule", "Never"], "`schedule` must be 'constant', 'loss-scaled' or one of"),
        (["--schedule-args", "3"], "`--schedule-args` must be a JSON object"),
        (["--schedule-args", "{step"], "`--schedule-args` must be a JSON object"),
        (["--peel", -1], "`--peel` must be"),
        (["--precision", "float16"], "--precision"),
        (["--epochs", "many"], "--epochs"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_options_are_told_in_a_sentence(root, tmp_path, arguments, sentence):
    done = invoke(root, "--out", tmp_path / "o", *arguments)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert not (tmp_path / "o" / "checkpoint.pt").exists()


def test_unwritable_out(root, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = invoke(root, "--out", tmp_path / "file")
    assert done.exit_code == 2 and "`--out` must be a writable folder" in done.output


def test_missing_data(root, tmp_path):
    done = invoke(tmp_path / "elsewhere", "--out", tmp_path / "o")
    assert done.exit_code == 2 and "FashionMNIST is not in" in done.output
    assert "`--data`" in done.output and "`--download`" in done.output
    assert "root`" not in done.output and "True" not in done.output


def test_without_torch(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = invoke(root, "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "needs torch, which is not installed; run `pip install 'fastnc[train]'`" in done.output


def test_without_torchvision(root, tmp_path, monkeypatch):
    from fastnc.training import stepper

    monkeypatch.setattr(stepper, "network", network.network)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    done = invoke(root, "--out", tmp_path / "o")
    assert done.exit_code == 2 and "needs torchvision, which is not installed" in done.output


def test_help_names_every_option():
    text = CliRunner().invoke(build(), ["train", "--help"], env={"COLUMNS": "200"}).output
    options = (
        "--data --download --subset --image-size --feature-dim --batch-norm --dropout --epochs "
        "--model --dataset --head --augment --label-noise --imbalance --start --feature-scale "
        "--classifier-scale --batch-size --lr --momentum --schedule --schedule-args --seed "
        "--precision --snapshots "
        "--device --compile --tensorboard --peel --out --resume --checkpoint-every"
    )
    for option in options.split():
        assert option in text, text
    assert "[default: 600]" in text and "[default: 4096]" in text
