"""Two gloo ranks beside one process: the loss, its classes divided, FSDP, trackers, statistics."""

import os
import subprocess
import sys
from pathlib import Path

import nn_ranks
import numpy as np
import oracles
import pytest
import test_nn_layers
import test_nn_tracker
import torch
import tracker_ranks
from nn_problem import REDUCTIONS, expected

import fastnc
from fastnc.nn import CollapseTracker

HERE = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks left."""
    folder = tmp_path_factory.mktemp("nn_ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    few = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    # The ranks take networks and their data from the tests of one process.
    places = [HERE.parent, HERE, HERE / "nn", few.get("PYTHONPATH", "")]
    few["PYTHONPATH"] = os.pathsep.join(map(str, places))
    done = subprocess.run(
        [*command, str(HERE / "nn_ranks.py"), str(folder)],
        capture_output=True, text=True, env=few,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_classes_divided_among_ranks(ranks, reduction, weighted, given):
    H, W, b, y, v = nn_ranks.batch()
    leaves = [x.requires_grad_() for x in (H, W, b)]
    true = expected(H, W, y, b, weight=v if weighted else None, reduction=reduction)
    scale = torch.linspace(1.0, 2.0, 37) if reduction == "none" and not given else 1.0
    wanted = [true.detach(), *torch.autograd.grad((true * scale).sum(), leaves)]
    for rank in ranks:
        for a, e in zip(rank[reduction, weighted, given], wanted, strict=True):
            assert a.shape == e.shape
            # Torch's own rounds logits of up to 200 to 3e-14; what is asked for is 1e-12.
            assert (a - e).abs().max() <= 1e-12 * (1 + e.abs().max())
    for a, e in zip(*(rank[reduction, weighted, given] for rank in ranks), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_divided_classes_are_differentiated_three_times(ranks, reduction, given):
    """Gradients, those of a gradient penalty, which are Hessian products, and those of theirs."""
    H, W, b, y, v = nn_ranks.batch()
    leaves = [x.requires_grad_() for x in (H, W, b)]
    value = expected(H, W, y, b, weight=v, reduction=reduction).cos().sum()
    for order in range(3):
        wanted = torch.autograd.grad(value, leaves, create_graph=True)
        value = sum(g.square().sum() for g in wanted)
        for rank in ranks:
            for a, e in zip(rank["again", reduction, given][order], wanted, strict=True):
                assert e.abs().max() > 0.01
                # What is asked for, beside the largest entry.
                assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def test_divided_classes_lose_no_digit(ranks):
    """Two samples at large margins, whose losses torch rounds to nothing."""
    H, W, b, y, _ = nn_ranks.batch()
    z = H @ W.T + b
    label = y.clamp(min=0)[:, None]
    gaps = (z - z.gather(1, label)).scatter(1, label, -torch.inf)
    losses = torch.logsumexp(gaps, 1).exp().log1p()[:2]
    assert losses.max() < 1e-10 and losses.min() < 1e-90
    # Logits near 200 are 3e-14 apart, and their errors are exponentiated.
    got = ranks[0]["none", False, False][0][:2]
    torch.testing.assert_close(got, losses, rtol=5e-13, atol=0.0)


@pytest.mark.parametrize("inside", [False, True])
def test_divided_classes_under_autocast(ranks, inside):
    """Logits were bfloat16, of 3 digits."""
    H, W, b, y, _ = nn_ranks.batch()
    H[:2] /= 40.0
    leaves = [x.float().double().requires_grad_() for x in (H, W, b)]
    true = expected(leaves[0], leaves[1], y, leaves[2])
    wanted = [true.detach(), *torch.autograd.grad(true, leaves)]
    for rank in ranks:
        for a, e in zip(rank["autocast", inside], wanted, strict=True):
            # Sums of five products and of 37 samples in float32.
            assert a.dtype == torch.float32 and (a - e).abs().max() <= 2e-6 * e.abs().max()


def test_fsdp_gathers_the_weights(ranks):
    H, W, b, y, _ = nn_ranks.batch()
    W.requires_grad_(), b.requires_grad_()
    halves = [expected(H[i : i + 15], W, y[i : i + 15], b) for i in (6, 21)]
    wanted = torch.autograd.grad(sum(halves) / 2, [W, b])
    for rank in ranks:
        for a, e in zip(rank["fsdp"], wanted, strict=True):
            assert (a - e).abs().max() <= 1e-12 * e.abs().max()


@pytest.mark.parametrize(
    "place, match",
    [
        (0, "`linear_weight` must be sharded by classes, Shard(0), on a mesh of one dimension"),
        (1, "`target` must hold classes, and `label_smoothing` and `softcap` be left alone"),
        (2, "`linear_bias` must be sharded as `linear_weight` is"),
        (3, "`input` must be replicated where `linear_weight` is sharded"),
        (4, "`linear_weight` must be a DTensor where `input` is one; got a plain tensor"),
        (5, "`linear_weight` must be whole under the transforms of `torch.func`, in forward mode"),
        (6, "`return_lse`, `return_predictions`, `return_entropies` and `z_loss_weight` must be"),
    ],
)
def test_what_has_no_divided_form_is_refused(ranks, place, match):
    assert all(rank["refused"][place].startswith(match) for rank in ranks)


def test_statistics_of_two_ranks_are_those_of_one(ranks):
    """Both passes over two processes of torch.distributed."""
    H, y, W, bias = tracker_ranks.H, tracker_ranks.Y, tracker_ranks.W, tracker_ranks.BIAS
    whole = fastnc.ClassStatistics(tracker_ranks.K, tracker_ranks.D, scatter="full")
    whole.update(H, y)
    known = whole.state_dict() | oracles.collapse(H, y, W, bias)
    one, other = (rank["statistics"] for rank in ranks)
    assert one.keys() == other.keys() and one["counts"].sum() == tracker_ranks.N
    for name in one:
        assert torch.equal(one[name], other[name]), name
        # Other orders of additions of well-scaled float64 numbers.
        np.testing.assert_allclose(one[name], known[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_two_ranks_measure_all_samples(ranks):
    _, theirs = test_nn_tracker.wanted(test_nn_tracker.network(), *test_nn_tracker.data())
    for rank in ranks:
        metrics, n_classes, n_samples, _ = rank["tracked"]
        assert (n_classes, n_samples) == (3, 110)
        for name, value in theirs.as_dict().items():
            # Sums in another order, in float64.
            assert metrics[name] == pytest.approx(value, rel=1e-9), name
    first, second = (rank["tracked"][3] for rank in ranks)
    assert all("another rank has no features, or not finite ones" in s for s in first)
    assert "55 samples entered the layer, and 54 labels" in second[0]
    assert "`y` must lie in 0..2" in second[1]
    assert "must be finite" in second[2]


@pytest.mark.parametrize("keep", ["memory", "nothing"])
def test_samples_that_a_sampler_repeats_do_not_count(ranks, keep):
    t, n = test_nn_layers, tracker_ranks.ODD
    model = t.network()
    tracker = CollapseTracker(model, layers=["hidden", "fc"])
    with tracker:
        t.loop(model, tracker, *t.data(n))
    for name, wanted in tracker.metrics(n=n).items():
        for rank in ranks:
            told, n_samples = rank["sampled"][keep][name]
            assert n_samples == n
            for key, value in wanted.as_dict().items():
                near = value if value is None else pytest.approx(value, rel=1e-9)
                assert told[key] == near, (name, key)


@pytest.mark.parametrize(
    ("library", "made"), [("lightning.pytorch", "validated"), ("accelerate", "evaluated")]
)
def test_callbacks_do_not_count_them_either(ranks, library, made):
    pytest.importorskip(library)
    for rank in ranks:
        (metrics, n_samples), (_, n_again) = rank[made]
        # Lightning's second loop was cut short: two batches of 8 on each rank.
        assert n_samples == tracker_ranks.ODD and n_again == (32 if made == "validated" else 51)
        told, _ = rank["sampled"]["memory"]["fc"]
        for name, value in told.items():
            # Sums over batches in another order, in float64.
            assert metrics[name] == (value if value is None else pytest.approx(value, rel=1e-9))
