"""Two gloo ranks under torchrun beside one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

# torch keeps a distributed package on every platform, but not always a working one.
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch was built without gloo", allow_module_level=True)

import distributed_ranks
import small_training

import fastnc
from fastnc._core.ranks import Workers
from fastnc.dynamics import sharding
from fastnc.training import evaluation, stepper
from fastnc.training.loop import train

HERE = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    small_training.write_files(folder / "data")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    few = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "distributed_ranks.py"), str(folder)],
        capture_output=True, text=True, env=few,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stepper, "network", small_training.network)


def test_metrics_of_two_ranks_are_those_of_one(ranks):
    columns, H = evaluation.measure(*distributed_ranks.untrained(), Workers())
    for found in ranks:
        # Half a batch may be multiplied in another order, in float32; of the same features all is
        # summed in float64. The test images' features are not among those compared.
        np.testing.assert_allclose(found["features"], H, rtol=1e-5, atol=1e-5)
        same = torch.equal(found["features"], H)
        assert found["measured"].keys() == columns.keys()
        for name, value in columns.items():
            close = 1e-10 if same and not name.startswith("test_") else 1e-5
            assert found["measured"][name] == pytest.approx(
                value, rel=close, abs=close, nan_ok=True
            )


def test_training_of_two_ranks_is_that_of_one_to_rounding(ranks, small):
    run = train(small_training.dataset(), 6, distributed_ranks.PLAIN)
    for found in ranks:
        assert found["trained"]["epoch"] == run["epoch"].tolist()
        # Gradients summed in another order in float32, over 24 steps of a training that learns.
        np.testing.assert_allclose(found["W"].numpy(), run.W, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["H"].numpy(), run.H, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found["trained"]["log_loss"], run["log_loss"], atol=1e-3)
        assert found["trained"]["lr"] == run["lr"].tolist()
    # As text, in which a NaN is a NaN.
    assert repr(ranks[0]["trained"]) == repr(ranks[1]["trained"])


def test_steps_that_grow_as_the_loss_falls_are_those_of_one_rank(ranks, small):
    run = train(small_training.dataset(), distributed_ranks.SCALED_EPOCHS, distributed_ranks.SCALED)
    # The steps have grown, and the loss is at the end of what float32 resolves beside 1.
    assert run["lr"][-1] > 1e4 * run["lr"][0] and run["log_loss"][-1] < -15.0
    for found in ranks:
        # Rounding of 240 steps in float32: seen 7e-7 of W and 3e-5 of H, whose size is 50.
        np.testing.assert_allclose(found["scaled W"].numpy(), run.W, rtol=0, atol=3e-5)
        np.testing.assert_allclose(found["scaled H"].numpy(), run.H, rtol=0, atol=1e-3)
        for name, allowed in (("log_loss", 1e-4), ("margin", 1e-4), ("lr", 1e-3)):
            np.testing.assert_allclose(found["scaled"][name], run[name], rtol=allowed, atol=1e-4)
    assert repr(ranks[0]["scaled"]) == repr(ranks[1]["scaled"])


def test_both_ranks_measure_one_network_with_batch_normalisation(ranks):
    assert torch.equal(ranks[0]["normed"], ranks[1]["normed"])
    assert ranks[0]["normed nc1"] == ranks[1]["normed nc1"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sharded_descent_is_that_of_one_process_to_rounding(ranks, dtype):
    model = distributed_ranks.MODEL
    run = fastnc.descend(model, 2.0, 300, seed=2, dtype=dtype, snapshots=5)
    # 300 epochs of rounding, each an ulp or so of numbers up to 10, without amplification.
    close = {"rtol": 0, "atol": 1e-11 if dtype == "float64" else 1e-4}
    H = np.concatenate([found[dtype + " H"].numpy() for found in ranks])
    assert [len(found[dtype + " H"]) for found in ranks] == [30, 31]
    np.testing.assert_allclose(H, run.H, **close)
    for found in ranks:
        assert found[dtype + " W"].dtype == getattr(torch, dtype)
        np.testing.assert_allclose(found[dtype + " W"].numpy(), run.W, **close)
        assert list(found[dtype]) == list(run.columns)
        for name in run.columns:
            # Ratios of sums of what agrees so far.
            rtol = 1e-9 if dtype == "float64" else 1e-3
            np.testing.assert_allclose(found[dtype][name], run[name], rtol=rtol, atol=rtol)
    assert torch.equal(ranks[0][dtype + " W"], ranks[1][dtype + " W"])


@pytest.mark.parametrize("name", distributed_ranks.RULES)
def test_rules_of_two_ranks_are_those_of_one(ranks, name):
    rule = distributed_ranks.RULES[name]
    run = fastnc.descend(distributed_ranks.MODEL, rule=rule, epochs=300, seed=2, snapshots=5)
    H = np.concatenate([found[name + " H"].numpy() for found in ranks])
    # 300 epochs of sums in another order; Adam divides by the root of a mean of squares, which
    # keeps a relative error what it is.
    np.testing.assert_allclose(H, run.H, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ranks[1][name + " W"].numpy(), run.W, rtol=0, atol=1e-10)


def test_a_resumed_run_goes_on_from_what_all_ranks_have(ranks):
    for found in ranks:
        assert torch.equal(found["resumed H"], found["float64 H"])


def test_divergence_on_any_rank_is_told_on_each(ranks):
    for found in ranks:
        assert "W or H is not finite after epoch" in found["diverged"]


def test_commands_under_torchrun(folder):
    model = fastnc.ULPM(5, 7, 20)
    run = fastnc.descend(model, epochs=200)
    parts = [fastnc.Trajectory.load(folder / "ulpm" / f"run-rank{r}of2.npz") for r in (0, 1)]
    # As for the sharded descent above.
    np.testing.assert_allclose(np.concatenate([p.H for p in parts]), run.H, rtol=0, atol=1e-11)
    np.testing.assert_allclose(parts[0]["log_loss"], run["log_loss"], rtol=1e-9)
    for name in (
        "figure2.png",
        "run.csv",
        "checkpoint-rank0of2-0.npz",
        "checkpoint-rank1of2-0.npz",
    ):
        assert (folder / "ulpm" / name).exists()
    trained = fastnc.Trajectory.load(folder / "train" / "run.npz")
    assert trained.H.shape == (60, 12) and trained.about["workers"] == 2
    assert (folder / "train" / "figure3.png").exists()


def test_rows_are_drawn_as_the_model_draws_them(monkeypatch):
    model = fastnc.ULPM(3, dim=4, labels=np.arange(50) % 3)
    W, H = model.init(5, "float32")
    monkeypatch.setattr(sharding, "_BLOCK", 4 * 7)
    for mine in (slice(0, 50), slice(0, 13), slice(13, 14), slice(20, 50), slice(28, 35)):
        own_W, own_H = sharding.start_rows(model, 5, "float32", mine)
        assert own_W.tobytes() == W.tobytes() and own_H.tobytes() == H[mine].tobytes()


def test_one_rank_alone_is_a_plain_descent():
    model = distributed_ranks.MODEL
    W, H = model.init(3)
    one = fastnc.descend(model, 2.0, 50, W=W, H=H, snapshots=5, sharded=True)
    run = fastnc.descend(model, 2.0, 50, W=W, H=H, snapshots=5)
    # As above.
    np.testing.assert_allclose(one.H, run.H, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"noise": 0.1}, ValueError, r"`sharded` goes with the exact gradient and Gradient"),
        ({"rule": fastnc.rules.NormalizedDescent(0.1)}, ValueError, r"none of its norm; got Norm"),
        ({"schedule": "loss-scaled"}, ValueError, r"with a schedule of the epoch: each rank has"),
        ({"H": np.ones((7, 6))}, ValueError, r"`H` must have 61 rows; got shape \(7, 6\)"),
        ({"lr": -1.0}, ValueError, r"`lr` must be a positive number; got -1.0"),
    ],
)
def test_sharded_calls_that_make_no_sense(options, error, sentence):
    with pytest.raises(error, match=sentence):
        fastnc.descend(distributed_ranks.MODEL, sharded=True, **options)


def test_a_model_that_is_not_the_ulpm_is_not_sharded():
    other = fastnc.models.weight_decay(3, 4, 5, 0.1, 0.1)
    with pytest.raises(TypeError, match=r"`model` must be a `fastnc.ULPM` to be sharded; got"):
        fastnc.descend(other, sharded=True)
