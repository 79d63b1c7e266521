"""A network measured on a whole data set: its collapse, its objective, its accuracies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastnc.data import Dataset
from fastnc.network import LAST_LAYER, Pixels
from fastnc.nn import CollapseTracker

ACCURACIES = ("train_accuracy", "test_accuracy")
_ROWS = 500


class Workers:
    """The ranks of a distributed run, or one alone."""

    def __init__(self) -> None:
        dist = torch.distributed
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.several else 0
        self.count = dist.get_world_size() if self.several else 1

    def mine(self, n: int) -> slice:
        """This rank's share of `n` samples."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the ranks, on each of them; overwritten."""
        if self.several:
            torch.distributed.all_reduce(x)
        return x

    def all(self, x: Tensor) -> Tensor:
        """The scalars of all ranks (ranks,)."""
        if not self.several:
            return x.reshape(1)
        parts = [torch.empty_like(x) for _ in range(self.count)]
        torch.distributed.all_gather(parts, x)
        return torch.stack(parts)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all ranks together, on each of them."""
        if not self.several:
            return rows
        counts = self.all(torch.tensor(len(rows), device=rows.device)).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def measure(
    net: Any, pixels: Pixels, data: Dataset, workers: Workers
) -> tuple[dict[str, float], Tensor]:
    """The columns of a trajectory without the time, and this rank's features (N, d).

    One pass over the training set and one over the test set, in evaluation mode, in float32
    whatever the training's precision; the features stay on the device.
    """
    net.eval()
    mine = workers.mine(len(data.train_labels))
    labels = data.train_labels[mine]
    with torch.no_grad():
        with CollapseTracker(net, LAST_LAYER, keep="device") as tracker:
            train_accuracy = _accuracy(net, pixels, data.train_images[mine], labels, workers)
        test = workers.mine(len(data.test_labels))
        test_accuracy = _accuracy(
            net, pixels, data.test_images[test], data.test_labels[test], workers
        )
    net.train()
    metrics = tracker.metrics(labels).as_dict()
    last = net.classifier[-1]
    H = tracker.features
    columns = objective(last.weight.detach(), last.bias, H, labels, metrics["margin"], workers)
    columns |= {name: math.nan if value is None else value for name, value in metrics.items()}
    return columns | {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}, H


def _accuracy(
    net: Any, pixels: Pixels, images: Tensor, labels: Tensor, workers: Workers
) -> float:
    right = torch.zeros(2, dtype=torch.float64, device=images.device)
    right[1] = len(labels)
    for x, y in zip(images.split(_ROWS), labels.split(_ROWS), strict=True):
        right[0] += (net(pixels(x)).argmax(1) == y).sum()
    found, n = workers.sum(right).tolist()
    return float(found / n) if n else math.nan


def objective(
    W: Tensor,
    bias: Tensor | None,
    H: Tensor,
    y: Tensor,
    margin: float | None,
    workers: Workers,
) -> dict[str, float]:
    """The objective's columns, as `fastnc.snapshot.measure` has them, over all ranks' samples.

    The layer-peeled variables are W and H; the bias, where there is one, enters the logits and
    is held fixed. It joins W as a column beside a constant feature, and leaves the gradients.
    """
    from fastnc import log_loss_and_grads

    W1, H1 = W, H
    if bias is not None:
        W1 = torch.cat([W, bias.detach().unsqueeze(1)], 1)
        H1 = torch.cat([H, H.new_ones(len(H), 1)], 1)
    d = W.shape[1]
    log_loss, grad_W, grad_H = log_loss_and_grads(W1, H1, y, reduction="sum")
    grad_W, grad_H = grad_W[:, :d].clone(), grad_H[:, :d]
    # Each rank's gradients are divided by its own loss: weigh them by its share of the whole.
    logs = workers.all(log_loss.double())
    total = torch.logsumexp(logs, 0)
    share = torch.exp(log_loss.double() - total).to(W.dtype)
    grad_W, grad_H = workers.sum(grad_W * share), grad_H * share
    samples = workers.sum(torch.tensor(float(len(H)), dtype=torch.float64, device=H.device))

    square_W = _square(W)
    square_H = float(workers.sum(_square(H)))
    norm = math.sqrt(float(square_W) + square_H)
    slope = math.sqrt(float(_square(grad_W)) + float(workers.sum(_square(grad_H))))
    mean_log_loss = float(total) - math.log(float(samples))
    log_grad_norm = mean_log_loss + math.log(slope) if slope > 0.0 else -math.inf
    gap = math.nan
    if norm > 0.0 and slope > 0.0:
        # Half the squared length of the sum of two unit vectors that become opposite: 1 - beta
        # without the cancellation of a scalar product close to 1.
        apart = workers.sum(_square(grad_H / slope + H / norm))
        gap = 0.5 * (float(_square(grad_W / slope + W / norm)) + float(apart))
    separated = margin is not None and margin > 0.0
    return {
        "log_loss": mean_log_loss,
        "log_grad_norm": log_grad_norm,
        "grad_norm": math.exp(log_grad_norm),
        "norm_W": math.sqrt(float(square_W)),
        "norm_H": math.sqrt(square_H),
        "beta": 1.0 - gap,
        "epsilon": norm * math.sqrt(2.0 * gap / margin) if separated and margin else math.nan,
    }


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64) ** 2
