"""A network measured on a whole data set: its collapse, its objective, its accuracies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastnc._core.ranks import Workers
from fastnc.dynamics.rank_snapshot import objective
from fastnc.nn import CollapseTracker
from fastnc.training.data import Dataset
from fastnc.training.network import Pixels, last_layer

ACCURACIES = ("train_accuracy", "test_accuracy")
# Images that pass the network at once.
_ROWS = 500


def measure(
    net: Any, pixels: Pixels, data: Dataset, workers: Workers
) -> tuple[dict[str, float], Tensor]:
    """The columns of a trajectory without the time, and this rank's features (N, d).

    One pass over the training set and one over the test set, in evaluation mode, in float32
    whatever the training's precision; the features stay on the device, and what is told of them
    is summed in float64.
    """
    net.eval()
    name, last = last_layer(net)
    mine, test = (workers.mine(len(y)) for y in (data.train_labels, data.test_labels))
    labels = data.train_labels[mine]
    with torch.no_grad():
        with CollapseTracker(net, name, keep="device") as tracker:
            train_accuracy = _accuracy(net, pixels, data.train_images[mine], labels, workers)
        test_accuracy = _accuracy(
            net, pixels, data.test_images[test], data.test_labels[test], workers
        )
    net.train()
    H = tracker.features
    metrics = tracker.metrics(labels).as_dict()
    columns = objective(
        last.weight.detach(), last.bias.detach(), H, labels, metrics["margin"], workers
    )
    columns["balance"] = (columns["norm_W"] / columns["norm_H"]) ** 2
    columns |= {name: math.nan if value is None else value for name, value in metrics.items()}
    return columns | dict(zip(ACCURACIES, (train_accuracy, test_accuracy), strict=True)), H


def _accuracy(net: Any, pixels: Pixels, images: Tensor, labels: Tensor, workers: Workers) -> float:
    right = torch.zeros(2, dtype=torch.float64, device=images.device)
    right[1] = len(labels)
    for low in range(0, len(labels), _ROWS):
        rows = slice(low, low + _ROWS)
        right[0] += (net(pixels(images[rows])).argmax(1) == labels[rows]).sum()
    found, n = workers.sum(right).tolist()
    return float(found / n) if n else math.nan
