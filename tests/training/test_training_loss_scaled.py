"""Steps that grow as the loss falls: the exact logarithm of a batch's loss, and the factor."""

import math

import mpmath
import numpy as np
import pytest
import small_training
import torch
from torch.nn import functional as F

from fastnc._core.ranks import Workers
from fastnc.training import stepper
from fastnc.training.experiment import Experiment
from fastnc.training.loop import train
from fastnc.training.loss_scaled import LossScaled, log_cross_entropy

CPU = torch.device("cpu")


def problem(scale):
    torch.manual_seed(0)
    y = torch.arange(12) % 4
    W = torch.eye(4, 6) + 0.1 * torch.randn(4, 6)
    h = scale * (torch.eye(4, 6)[y] + 0.1 * torch.randn(12, 6))
    bias = 0.1 * torch.randn(4)
    return [x.requires_grad_() for x in (h, W, bias)], y


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_log_loss_beside_mpmath(scale):
    (h, W, bias), y = problem(scale)
    found = log_cross_entropy(h, W, y, bias).detach()
    with mpmath.workdps(200):
        total = mpmath.mpf(0)
        for row, label in zip(h.tolist(), y.tolist(), strict=True):
            logits = [
                mpmath.fdot(row, w) + b for w, b in zip(W.tolist(), bias.tolist(), strict=True)
            ]
            total += mpmath.log(sum(mpmath.exp(z - logits[label]) for z in logits))
        want = float(mpmath.log(total / len(y)))
    # Logits of at most some 400, in float64.
    assert float(found) == pytest.approx(want, rel=1e-13)
    assert (scale == 1.0) == (want > -1.0) and (scale == 1.0 or want < -150.0)


def test_its_gradients_are_those_of_the_logarithm():
    leaves, y = problem(2.0)
    h, W, bias = (x.detach().double().requires_grad_() for x in leaves)
    want = torch.autograd.grad(F.cross_entropy(h @ W.T + bias, y).log(), (h, W, bias))
    found = torch.autograd.grad(log_cross_entropy(*leaves[:2], y, leaves[2]), leaves)
    for a, b in zip(found, want, strict=True):
        # Rounded once to float32.
        torch.testing.assert_close(a.double(), b, rtol=2e-7, atol=1e-9)
    h, W = leaves[:2]
    without = torch.autograd.grad(log_cross_entropy(h, W, y), (h, W))
    assert without[0].shape == h.shape and without[1].shape == W.shape


def scaled(log_loss, gradient, log_mean, **options):
    """The factor that a gradient gets."""
    rule = LossScaled(0.1, 0.9, 20, CPU, **options)
    rule.log_mean.fill_(log_mean)
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.tensor([gradient, 0.0])
    rule.scale([parameter], torch.tensor(log_loss, dtype=torch.float64))
    return float(parameter.grad[0]) / gradient, rule


def test_the_factor_is_what_its_docstring_says():
    # The gradient is short: lr L_b g over the running mean, which this batch has moved.
    factor, rule = scaled(-5.0, 0.01, -4.0)
    mean = math.log(0.95 * math.exp(-4.0) + 0.05 * math.exp(-5.0))
    assert float(rule.log_mean) == pytest.approx(mean, rel=1e-12)
    assert factor == pytest.approx(math.exp(-5.0 - mean), rel=1e-6)
    # It is long: a step takes `decrease` from log L_b, momentum's tail included.
    factor, _ = scaled(-60.0, 30.0, -60.0, decrease=0.5)
    assert factor * 0.1 / (1 - 0.9) * 30.0**2 == pytest.approx(0.5, rel=1e-6)
    # The loss is high: never below the plain step.
    factor, rule = scaled(0.7, 30.0, 0.7)
    assert factor == pytest.approx(math.exp(0.7), rel=1e-6)
    assert float(rule.log_step) == pytest.approx(0.0, abs=1e-12)


def test_the_first_batch_is_its_own_mean():
    rule = LossScaled(0.1, 0.9, 20, CPU)
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.tensor([1e-3])
    rule.scale([parameter], torch.tensor(-2.0, dtype=torch.float64))
    assert float(rule.log_mean) == -2.0 and float(parameter.grad) == pytest.approx(1e-3, rel=1e-6)
    other = LossScaled(0.1, 0.9, 20, CPU)
    other.load_state_dict(rule.state_dict())
    assert float(other.log_mean) == -2.0


def test_one_worker_has_the_whole_batch():
    loss = torch.tensor(-3.0, dtype=torch.float64)
    whole, weight = LossScaled(0.1, 0.9, 20, CPU).share(loss, 5, 5, Workers())
    assert float(whole) == -3.0 and float(weight) == 1.0


def test_several_workers_make_one_batch():
    """Two workers' logarithms and weights, without their processes."""

    class Two(Workers):
        several, count = True, 2

        def __init__(self, others):
            self.others = others

        def largest(self, x):
            return torch.maximum(x, self.others)

        def sum(self, x):
            return x + torch.exp(self.others - self.top)

    losses = torch.tensor([-700.0, -702.0], dtype=torch.float64)
    sizes, weights = (3, 2), []
    for i in (0, 1):
        workers = Two(losses[1 - i] + math.log(sizes[1 - i] / 5))
        workers.top = float((losses + torch.tensor(sizes).double().div(5).log()).max())
        whole, weight = LossScaled(0.1, 0.9, 20, CPU).share(losses[i], sizes[i], 5, workers)
        weights.append(float(weight))
    want = -700.0 + math.log(0.6 + 0.4 * math.exp(-2.0))
    assert float(whole) == pytest.approx(want, rel=1e-14)
    # Averaged over two workers, the weights of a mean.
    assert np.mean(weights) == pytest.approx(1.0, rel=1e-12)


def test_a_longer_running_mean():
    _, rule = scaled(-5.0, 0.01, -4.0, batches=10)
    mean = math.log(0.9 * math.exp(-4.0) + 0.1 * math.exp(-5.0))
    assert float(rule.log_mean) == pytest.approx(mean, rel=1e-12)
    _, rule = scaled(-5.0, 0.01, -4.0, batches=1)
    assert float(rule.log_mean) == -5.0


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match=r"`batches` must be an integer of at least 1; got 0"):
        LossScaled(0.1, 0.9, 20, CPU, batches=0)
    with pytest.raises(ValueError, match=r"`decrease` must be a positive number; got 0"):
        LossScaled(0.1, 0.9, 20, CPU, decrease=0.0)
    wrong = Experiment(schedule="loss-scaled", schedule_args={"gamma": 1.0}, feature_dim=4)
    with pytest.raises(ValueError, match=r"do not suit loss-scaled: .*gamma"):
        train(small_training.dataset(), 1, wrong)


def test_a_network_goes_where_float32_has_no_loss_left(monkeypatch):
    monkeypatch.setattr(stepper, "network", small_training.network)
    settings = {"head": "linear", "batch_norm": True, "batch_size": 30, "lr": 0.1, "snapshots": 3}
    deep = Experiment(schedule="loss-scaled", schedule_args={"decrease": 4.0}, **settings)
    data = small_training.dataset()
    run = train(data, 150, deep)
    plain = train(data, 100, Experiment(**settings))
    # e^-104 is the smallest number of float32.
    assert run["log_loss"][-1] < -110.0 < plain["log_loss"][-1]
    assert run["margin"][-1] > 5.0 * plain["margin"][-1] > 0.0
    for name in ("within_class", "self_duality", "equiangular_features"):
        assert run[name][-1] < plain[name][-1]
    assert run["lr"][-1] > 1e40 and run["lr"][0] == 0.1
