"""`fastnc compare` as a user types it, and rules as they are typed."""

import numpy as np
import pytest
from typer.testing import CliRunner

import fastnc
from fastnc.cli import build
from fastnc.cli._rules import rule_of

R = fastnc.rules


def invoke(*arguments):
    return CliRunner().invoke(build(), [str(a) for a in arguments])


@pytest.mark.usefixtures("rendered")
def test_writes_a_figure_a_table_and_the_runs(tmp_path):
    options = ["--epochs", 50, "--seeds", 2, "--out", tmp_path, "--n-classes", 4, "--dim", 6]
    done = invoke("compare", "normalized:0.1", "SpectralDescent(1e-2)", *options)
    assert done.exit_code == 0, done.output
    for name in ("compare.png", "compare.pdf", "runs.npz", "runs.csv"):
        assert (tmp_path / name).stat().st_size > 1000 and name in done.output
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    model = fastnc.ULPM(4, 10, 6)
    alone = fastnc.descend(model, rule=R.SpectralDescent(1e-2), epochs=50, seed=1, snapshots=20)
    assert len(runs) == 4 and runs[3].W.tobytes() == alone.W.tobytes()
    median = np.median([runs[2]["margin_ratio_spectral"][-1], alone["margin_ratio_spectral"][-1]])
    assert f"{median:.6g}" in done.output and "SpectralDescent(0.01)" in done.output


def test_what_diverged_is_no_success(tmp_path):
    options = ["--epochs", 5, "--seeds", 2, "--n-classes", 3, "--dim", 4, "--out", tmp_path]
    done = invoke("compare", "gd:1e200", *options)
    (row,) = [line for line in done.output.splitlines() if "lr=1e+200" in line][:1]
    # What was measured before it diverged is not at the end.
    assert done.exit_code == 1 and row.split()[-7:] == ["-"] * 5 + ["2", "diverged"]
    assert "fastnc: none of 2 runs came to its end: 2 diverged." in done.stderr
    assert len(fastnc.Trajectories.load(tmp_path / "runs.npz")) == 2
    some = invoke("compare", "gd:1e200", "gd", *options)
    assert some.exit_code == 0 and some.stderr == "fastnc: of 4 runs 2 diverged.\n"
    twice = invoke("compare", "gd", "gd:5.0", *options)
    assert twice.exit_code == 2 and "`rule` must have different values; got Gr" in twice.output


def test_ulpm_and_sweep_take_rules_and_batches(tmp_path):
    options = ["--rule", "normalized:0.1", "--batch-size", 10, "--epochs", 20, "--out", tmp_path]
    done = invoke("ulpm", *options)
    assert done.exit_code == 0, done.output
    run = fastnc.Trajectory.load(tmp_path / "run.npz")
    alone = fastnc.descend(
        fastnc.ULPM(5, 10, 20), rule=R.NormalizedDescent(0.1), batch_size=10, epochs=20
    )
    assert run.W.tobytes() == alone.W.tobytes()
    done = invoke("sweep", *options, "--batch-size", 25, "--seeds", 2)
    assert done.exit_code == 0, done.output
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    assert [r.about["batch_size"] for r in runs] == [10, 10, 25, 25]
    assert runs[0].W.tobytes() == alone.W.tobytes()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("adam", R.Adam()),
        ("ADAM:1e-3", R.Adam(1e-3)),
        ("Adam(1e-3, (0.9, 0.99), eps=0.0)", R.Adam(1e-3, (0.9, 0.99), 0.0)),
        ("Momentum(Cosine(5, 1000), nesterov=True)", R.Momentum(R.Cosine(5, 1000), nesterov=True)),
        ("gd:LossScaled()", R.GradientDescent(R.LossScaled())),
        ("GradientDescent(Power(1, -0.5))", R.GradientDescent(R.Power(1, -0.5))),
    ],
)
def test_rules_as_they_are_typed(text, rule):
    assert rule_of(text) == rule


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lion", "a rule must be gd, momentum, adam"),
        ("__import__('os').system('true')", "a rule must be gd"),
        ("Adam(lr=open)", "a rule must be gd"),
        ("Adam(**{})", "a rule must be gd"),
        ("adam:fast", "a rule must be gd"),
        ("adam:-1", "`lr` must be a positive number; got -1"),
        ("Adam(rate=1)", "is no rule: .*unexpected keyword argument 'rate'"),
        ("Cosine(5, 1000)", "`rule` must be one of `fastnc.rules`"),
    ],
)
def test_what_is_no_rule(text, sentence, tmp_path):
    done = invoke("compare", text, "--out", tmp_path / "new", "--epochs", 5, "--seeds", 1)
    said = " ".join(done.output.split())
    import re

    assert done.exit_code == 2 and re.search(sentence, said), said
