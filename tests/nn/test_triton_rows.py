"""What surrounds the Triton kernels, seen with a stand-in for them: the device, and labels."""

import sys
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from nn_problem import REDUCTIONS, problem

from fastnc.nn import _triton_rows
from fastnc.nn._problem import Problem


@pytest.fixture
def launches(monkeypatch):
    """What the kernels are called with, and on whose device."""
    current, seen = [], []

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    def loss_and_grads(W, H, y, bias, weights, smoothing, scale, total, losses, *grads):
        seen.append({"current": list(current), "y": y, "scale": scale})
        for out in (total, losses, *grads):
            out.fill_(1.0)

    kernels = ModuleType("fastnc.kernels.gpu.weighted_cross_entropy")
    kernels.loss_and_grads = loss_and_grads
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    return seen


def _evaluate(y, reduction, weight=None):
    H, W, _, _, _ = (x.detach() for x in problem(N=len(y)))
    given = Problem(H, W, None, y, weight, reduction, -100, 0.0, 3)
    upstream = torch.ones(len(y), dtype=torch.float64) if reduction == "none" else None
    return H, _triton_rows.evaluate(torch.float64, given, upstream)


def test_kernels_start_on_the_tensors_own_device(launches):
    H, _ = _evaluate(torch.tensor([0, 1, 2]), "mean")
    (launch,) = launches
    assert len(launch["current"]) == 1 and launch["current"][0].data_ptr() == H.data_ptr()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bad", [7, -1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_label_that_fits_nothing_makes_nan(launches, monkeypatch, reduction, bad, weighted):
    """No assertion on the device, which would end every tensor of the process; no wrong number."""
    monkeypatch.setattr(torch, "_assert_async", None)
    weight = torch.ones(7, dtype=torch.float64) if weighted else None
    _, (loss, *_) = _evaluate(torch.tensor([0, bad, -100, 2]), reduction, weight)
    (launch,) = launches
    assert launch["y"].tolist() == [0, -1, -1, 2] and launch["scale"].isnan().all()
    assert loss.isnan().tolist() == ([False, True, False, False] if reduction == "none" else True)


def test_a_mean_of_nothing_has_gradients_of_zero(launches):
    _, (loss, *_) = _evaluate(torch.tensor([-100, -100]), "mean")
    assert launches[0]["scale"].tolist() == [0.0] and not torch.isfinite(loss)
