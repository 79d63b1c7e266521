"""A network measured on a data set, beside plain torch in float64."""

import math

import numpy as np
import pytest
import small_training
import torch
from torch.nn import functional as F

import fastnc
from fastnc._core.ranks import Workers
from fastnc.dynamics import rank_snapshot
from fastnc.dynamics.rank_snapshot import objective
from fastnc.dynamics.snapshot import NORMS, OBJECTIVE
from fastnc.dynamics.snapshot import measure as measure_alone
from fastnc.training import evaluation
from fastnc.training.network import Pixels

ALONE = Workers()


@pytest.fixture
def problem():
    """W, bias, H, y in float64, of which every sample is on the right side."""
    rng = np.random.default_rng(3)
    y = np.arange(40) % 4
    W = 2.0 * np.eye(4, 7) + 0.2 * rng.standard_normal((4, 7))
    H = 0.3 * rng.standard_normal((40, 7)) + W[y]
    bias = 0.3 * rng.standard_normal(4)
    assert fastnc.neural_collapse_margin(W, H, y) > 0.5
    return [torch.from_numpy(x) for x in (W, bias, H, y)]


def test_objective_is_the_layer_peeled_ones_without_a_bias(problem):
    W, _, H, y = problem
    want = measure_alone(W.numpy(), H.numpy(), y.numpy())
    got = objective(W, None, H, y, want["margin"], ALONE)
    assert tuple(got) == (*OBJECTIVE, *NORMS)
    for name in got:
        # Sums of 300 products in float64.
        assert got[name] == pytest.approx(want[name], rel=1e-12, abs=1e-14), name


def test_objective_with_a_bias_beside_autograd(problem):
    W, bias, H, y = problem
    W1, H1 = (x.clone().requires_grad_() for x in (W, H))
    loss = F.cross_entropy(H1 @ W1.T + bias, y)
    loss.backward()
    slope = math.hypot(float(W1.grad.norm()), float(H1.grad.norm()))
    inner = float((W1.grad * W).sum() + (H1.grad * H).sum())
    size = math.hypot(float(W.norm()), float(H.norm()))
    got = objective(W, bias, H, y, None, ALONE)
    # As above; the loss is not so small that its logarithm's argument cancels.
    assert got["log_loss"] == pytest.approx(math.log(float(loss.detach())), abs=1e-10)
    assert got["grad_norm"] == pytest.approx(slope, rel=1e-10)
    assert got["beta"] == pytest.approx(-inner / (size * slope), abs=1e-10)
    assert math.isnan(got["epsilon"])


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_chunks_and_the_far_tail(problem, monkeypatch, scale):
    W, bias, H, y = problem
    whole = objective(scale * W, bias, scale * H, y, 1.0, ALONE)
    monkeypatch.setattr(rank_snapshot, "_CHUNK_BYTES", 8 * 8 * 7)
    parts = objective(scale * W, bias, scale * H, y, 1.0, ALONE)
    if scale > 1.0:
        assert whole["log_loss"] < -700.0
        far = measure_alone(scale * W.numpy(), scale * H.numpy(), y.numpy())
        near = objective(scale * W, None, scale * H, y, far["margin"], ALONE)
        # Of logits of some thousands, each rounded in its sixteenth digit.
        assert near["log_loss"] == pytest.approx(far["log_loss"], rel=1e-12)
        assert near["beta"] == pytest.approx(far["beta"], abs=1e-10)
    for name, value in whole.items():
        # The order of sums, and logits of some thousands that enter exponentials.
        assert parts[name] == pytest.approx(value, rel=1e-10), name


def test_a_network_is_measured_as_plain_torch_would(monkeypatch):
    torch.manual_seed(4)
    data = small_training.dataset()
    net, pixels = small_training.network(batch_norm=True), Pixels(data.mean, data.std)
    with torch.no_grad():
        for _ in range(3):
            net.features(pixels(data.train_images))
    monkeypatch.setattr(evaluation, "_ROWS", 17)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    columns, H = evaluation.measure(net, pixels, data, ALONE)
    assert net.training and all(torch.equal(x, before[n]) for n, x in net.state_dict().items())

    net.eval()
    last = net.classifier[-1]
    with torch.no_grad():
        flat = torch.flatten(net.avgpool(net.features(pixels(data.train_images))), 1)
        want = net.classifier[:-1](flat)
        test_logits = net(pixels(data.test_images))
    logits = (want.double() @ last.weight.detach().double().T) + last.bias.detach().double()
    # Batches of another size may sum in another order, in float32.
    torch.testing.assert_close(H, want, rtol=1e-5, atol=1e-6)
    assert columns["train_accuracy"] == float(
        (logits.argmax(1) == data.train_labels).double().mean()
    )
    right = test_logits.argmax(1) == data.test_labels
    assert columns["test_accuracy"] == float(right.double().mean())
    loss = F.cross_entropy(logits, data.train_labels)
    # The features' float32 rounding.
    assert columns["log_loss"] == pytest.approx(math.log(float(loss)), abs=1e-5)
    metrics = fastnc.collapse_metrics(
        H, data.train_labels, W=last.weight.detach(), bias=last.bias.detach()
    ).as_dict()
    for name, value in metrics.items():
        # The same float64 sums, in parts.
        assert columns[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name


def test_held_out_images_are_measured_about_the_training_means():
    torch.manual_seed(5)
    data = small_training.dataset(n=60, n_test=30)
    net, pixels = small_training.network(head="linear"), Pixels(data.mean, data.std)
    columns, H = evaluation.measure(net, pixels, data, ALONE)
    net.eval()
    last = net.classifier[-1]
    with torch.no_grad():
        held = torch.flatten(net.avgpool(net.features(pixels(data.test_images))), 1)
    H, held = H.numpy().astype(np.float64), held.numpy().astype(np.float64)
    y, test_y = data.train_labels.numpy(), data.test_labels.numpy()
    means = np.array([H[y == k].mean(0) for k in range(10)])
    centre = means.mean(0)
    nearest = ((held[:, None] - means) ** 2).sum(2).argmin(1)
    weight, bias = last.weight.detach().numpy(), last.bias.detach().numpy()
    decision = (held @ weight.T.astype(np.float64) + bias).argmax(1)
    assert columns["test_nearest_mean_accuracy"] == (nearest == test_y).mean()
    assert columns["test_nc4_agreement"] == (nearest == decision).mean()
    spread = np.linalg.norm(held - means[test_y], axis=1)
    # Galanti et al. 2022: over pairs of classes.
    variance = np.array([(spread[test_y == k] ** 2).mean() for k in range(10)])
    apart = ((means[:, None] - means) ** 2).sum(2)
    pairs = [
        (variance[j] + variance[k]) / (2.0 * apart[j, k])
        for j in range(10) for k in range(10) if j != k
    ]  # fmt: skip
    # The features are float32; the sums are float64 in another order.
    assert columns["test_cdnv"] == pytest.approx(np.mean(pairs), rel=1e-9)
    about_centre = np.linalg.norm(held - centre, axis=1)
    assert columns["test_within_class"] == pytest.approx(
        spread.mean() / about_centre.mean(), rel=1e-9
    )


def test_the_profile_through_the_depth_has_each_layer_s_own_metrics():
    torch.manual_seed(6)
    data = small_training.dataset()
    net, pixels = small_training.network(), Pixels(data.mean, data.std)
    table = evaluation.depth_profile(net, pixels, data, ALONE)
    assert net.training
    # What enters each layer with weights but the first: all but the last are hidden.
    assert list(table) == [f"classifier.{i}" for i in (0, 3, 6)]
    net.eval()
    with torch.no_grad():
        x = torch.flatten(net.avgpool(net.features(pixels(data.train_images))), 1)
        for i, module in enumerate(net.classifier):
            if f"classifier.{i}" in table:
                want = fastnc.collapse_metrics(x, data.train_labels)
                got = table[f"classifier.{i}"]
                for name in ("within_class", "equinorm_features", "nc1", "cdnv"):
                    # The same float32 features, batch by batch.
                    assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-4), name
            x = module(x)
