"""What `ulpm`, `flow`, `sweep` and `compare` take beside sizes: class sizes, losses, schedules."""

import numpy as np
import pytest
from typer.testing import CliRunner

import fastnc
from fastnc.cli import build

R = fastnc.rules
SIZES = ("--class-sizes", "4,4,1", "--dim", 4)


def invoke(*arguments):
    return CliRunner().invoke(build(), [str(a) for a in arguments])


def unequal(**options):
    return fastnc.ULPM(3, dim=4, labels=[0] * 4 + [1] * 4 + [2], **options)


def test_class_sizes_a_schedule_and_noise(tmp_path):
    options = [*SIZES, "--epochs", 20, "--noise", 1e-3, "--out", tmp_path]
    done = invoke("ulpm", *options, "--rule", "adam", "--schedule", "Power(1e-2, 0.5)")
    assert done.exit_code == 0, done.output
    run = fastnc.Trajectory.load(tmp_path / "run.npz")
    rule = R.Adam(R.Power(1e-2, 0.5))
    alone = fastnc.descend(unequal(), rule=rule, epochs=20, noise=1e-3)
    assert run.W.tobytes() == alone.W.tobytes()
    done = invoke("sweep", *options, "--schedule", "Cosine(2, 20)", "--seeds", 1)
    assert done.exit_code == 0, done.output
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    alone = fastnc.descend(unequal(), R.Cosine(2, 20), 20, noise=1e-3)
    assert runs[0].W.tobytes() == alone.W.tobytes()


def test_losses_and_flows(tmp_path):
    done = invoke("flow", *SIZES, "--loss", "squared", "--log10-time", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    run = fastnc.Trajectory.load(tmp_path / "run.npz")
    alone = fastnc.flow(unequal(loss="squared"), 1)
    assert run.W.tobytes() == alone.W.tobytes()
    options = ["--method", "flow", "--log10-time", 2, "--seeds", 2, "--snapshots", 4]
    done = invoke("sweep", *SIZES, "--class-sizes", "2,2,2", *options, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    alone = fastnc.flow(fastnc.ULPM(3, 2, 4), 2, 1, snapshots=4)
    assert len(runs) == 4 and runs[3].W.tobytes() == alone.W.tobytes()
    done = invoke("ulpm", *SIZES, "--loss", "focal", "--epochs", 20, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "objective" in fastnc.Trajectory.load(tmp_path / "run.npz").columns


def test_compare_moves_earlier_results_aside(tmp_path):
    options = ["--epochs", 20, "--seeds", 1, *SIZES, "--out", tmp_path]
    assert invoke("compare", "gd:1", *options).exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "compare.png" in before
    done = invoke("compare", "gd:1", "sign:1e-2", *options)
    assert done.exit_code == 0 and "Earlier results of" in done.output
    assert {p.name: p.read_bytes() for p in (tmp_path / "earlier-1").iterdir()} == before
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    assert np.array_equal(runs[0].y, unequal().y)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ulpm", "--class-sizes", "4"), "`--class-sizes` must be the samples of at least 2 clas"),
        (("ulpm", "--class-sizes", "4,x"), "`--class-sizes` must be the samples of at least 2 cl"),
        (("flow", "--class-sizes", "0,0"), "`--class-sizes` must be the samples of at least 2 cl"),
        (("ulpm", *SIZES, "--n-classes", 4), "`--class-sizes` 4,4,1 says how many classes and sa"),
        (("compare", "gd", *SIZES, "--n-per-class", 3), "`--class-sizes` 4,4,1 says how many cla"),
        # Typed, a default contradicts as another value does.
        (("ulpm", *SIZES, "--n-classes", 5), "`--class-sizes` 4,4,1 says how many classes and sa"),
        (("flow", *SIZES, "--n-per-class", 10), "`--class-sizes` 4,4,1 says how many classes and"),
        (("sweep", *SIZES, "--n-classes", 3, "--n-classes", 5), "`--class-sizes` 4,4,1 says how "),
        (("sweep", *SIZES, "--class-sizes", "4, 4,01"), "`class_sizes` must have different values"),
        (("ulpm", "--rule", "adam:1e-2", "--lr", 5), "`--lr` and `--rule` do not go together; wr"),
        (("sweep", "--schedule", "Power(1)", "--lr", 5), "`--lr` and `--schedule` do not go toget"),
        (("sweep", "--method", "flow", "--lr", 5), "a flow has no step: leave out --lr, --rule,"),
        (("sweep", "--method", "flow", "--epochs", 100_000), "a flow has no step: leave out --lr"),
        (("train", "--model", "resnet18", "--feature-dim", 4096), "`--feature-dim` must be left o"),
        (("ulpm", "--schedule", "sine"), "`--schedule` must be loss-scaled or a schedule of fast"),
        (("ulpm", "--schedule", "Cosine(5)"), "'Cosine(5)' is no schedule: "),
        (("ulpm", "--schedule", "Adam(1)"), "`--schedule` must be loss-scaled or a schedule of"),
        (("ulpm", "--schedule", "Power(1)", "--lr", 2), "`--lr` and `--schedule` do not go toget"),
        (("ulpm", "--noise", -1), "`noise` must be a number of at least 0; got -1.0"),
        (("ulpm", "--loss", "focal", "--schedule", "loss-scaled"), "and loss='focal' do not go t"),
        (("ulpm", "--loss", "hinge"), "Invalid value for '--loss'"),
        (("sweep", "--method", "flow", "--lr", 2), "a flow has no step: leave out --lr, --rule,"),
        (("sweep", "--method", "flow", "--dtype", "float32"), "a flow must be of float64; got"),
        (("sweep", "--log10-time", 2), "`--log10-time` must come with --method flow; leave it out"),
        (("sweep", "--rule", "adam", "--lr", 2), "`--lr` and `--rule` do not go together; write"),
        (("ulpm", "--rule", "adam", "--lr", 2), "`--lr` and `--rule` do not go together; write"),
        (("ulpm", "--rule", "Adam(lr=1, lr=2)"), "nesterov=True)\"; got 'Adam(lr=1, lr=2)'."),
        (
            ("ulpm", "--rule", "adam:x"),
            "as \"Momentum(Cosine(5, 1000), nesterov=True)\"; got 'adam:x'.",
        ),
        (("flow", "--loss", "focal", "--log10-time", 9), "`log10_time` must be at most 8 of ULPM"),
    ],
)
def test_bad_values_are_told_in_a_sentence(tmp_path, arguments, sentence):
    done = invoke(*arguments, "--out", tmp_path)
    assert done.exit_code == 2 and sentence in done.output, done.output
    if not sentence.startswith("Invalid value"):
        assert done.output.count("\n") == 1
