"""`fastnc.nn` by Triton against torch's own loss: reductions, ignored rows, wanted gradients."""

import pytest
import torch
from interpreted import DEVICE
from torch.nn.functional import cross_entropy

from fastnc.nn import _triton_rows
from fastnc.nn._problem import Problem


@pytest.fixture
def batch():
    made = torch.Generator().manual_seed(0)
    H = torch.randn(11, 5, generator=made, dtype=torch.float64).to(DEVICE)
    W = torch.randn(4, 5, generator=made, dtype=torch.float64).to(DEVICE)
    bias = torch.randn(4, generator=made, dtype=torch.float64).to(DEVICE)
    target = torch.tensor([0, 1, 2, 3, -100, 1, 0, -100, 3, 2, 2], device=DEVICE)
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64, device=DEVICE)
    return H, W, bias, target, weight


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_torchs_own_loss(batch, reduction, weighted):
    H, W, bias, target, weight = batch
    options = {
        "weight": weight if weighted else None,
        "reduction": reduction,
        "label_smoothing": 0.1 if weighted else 0.0,
    }
    leaves = [x.clone().requires_grad_() for x in (H, W, bias)]
    exact = cross_entropy(leaves[0] @ leaves[1].T + leaves[2], target, **options)
    upstream = torch.linspace(0.5, 1.5, 11, dtype=torch.float64).to(DEVICE)
    none = reduction == "none"
    exact.backward(upstream if none else None)
    problem = Problem(
        H, W, bias, target, options["weight"], reduction, -100, options["label_smoothing"], 7
    )
    loss, *grads = _triton_rows.evaluate(torch.float64, problem, upstream if none else None)
    # Sums of a few dozen terms, each a few roundings.
    torch.testing.assert_close(loss, exact.detach(), rtol=1e-13, atol=1e-14)
    for ours, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-13, atol=1e-14)


def test_half_precision_is_widened_and_only_what_is_wanted_comes_back(batch):
    H, W, _, target, _ = batch
    problem = Problem(H.half(), W.half(), None, target, None, "mean", -100, 0.0, 2)
    loss, grad_H, grad_W, grad_bias = _triton_rows.evaluate(torch.float32, problem)
    assert grad_H is None and grad_bias is None and grad_W.dtype == torch.float32
    exact = cross_entropy(H.half().double() @ W.half().double().T, target)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_no_row_that_counts(batch):
    H, W, bias, target, _ = batch
    ignored = torch.full_like(target, -100)
    problem = Problem(H, W, bias, ignored, None, "sum", -100, 0.0, 7)
    loss, grad_H, *_ = _triton_rows.evaluate(torch.float64, problem)
    assert loss.item() == 0.0 and not grad_H.any()
    problem = Problem(H[:0], W, bias, target[:0], None, "sum", -100, 0.0, 7)
    loss, _, grad_W, grad_bias = _triton_rows.evaluate(torch.float64, problem)
    assert loss.item() == 0.0 and not grad_W.any() and not grad_bias.any()


def test_a_mean_over_labels_of_weight_zero_is_not_a_number(batch):
    """Smoothing sums what is not zero: 0 / 0 as torch's, not infinity."""
    H, W, bias, target, weight = batch
    problem = Problem(H, W, bias, target * 0, weight * (target[:4] > 0), "mean", -100, 1.0, 7)
    found = _triton_rows.evaluate(torch.float64, problem)
    assert all(x.isnan().all() for x in found)
    ignored = problem._replace(target=target * 0 - 100)
    loss, *grads = _triton_rows.evaluate(torch.float64, ignored)
    assert loss.isnan() and not any(g.any() for g in grads)
