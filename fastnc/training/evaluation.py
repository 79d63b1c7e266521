"""Measurements of a network on a whole data set: its collapse, its objective, its accuracies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastnc._core.ranks import Workers
from fastnc.collapse.layer_table import LayerTable
from fastnc.dynamics.rank_snapshot import objective
from fastnc.nn import CollapseTracker
from fastnc.training.data import Dataset
from fastnc.training.network import Pixels, last_layer

ACCURACIES = ("train_accuracy", "test_accuracy")
# The metrics of test images, about the class means of the training features.
HELD_OUT = ("nc4_agreement", "nearest_mean_accuracy", "cdnv", "within_class")
# Images that pass the network at once.
_ROWS = 500


def measure(
    net: Any, pixels: Pixels, data: Dataset, workers: Workers
) -> tuple[dict[str, float], Tensor]:
    """The columns of a trajectory without the time, and this rank's features (N, d).

    One pass over the training set and one over the test set, in evaluation mode, in float32
    whatever the training's precision; the features stay on the device, and their sums are in
    float64. `test_...` are metrics of test images about the training means.
    """
    net.eval()
    name, last = last_layer(net)
    mine, test = (workers.mine(len(y)) for y in (data.train_labels, data.test_labels))
    labels, test_labels = data.train_labels[mine], data.test_labels[test]
    accuracies = []
    with torch.no_grad():
        with CollapseTracker(net, name, keep="device") as tracker:
            accuracies.append(_accuracy(net, pixels, data.train_images[mine], labels, workers))
        with CollapseTracker(net, name, keep="device") as held:
            accuracies.append(_accuracy(net, pixels, data.test_images[test], test_labels, workers))
    net.train()
    H = tracker.features
    metrics = tracker.metrics(labels).as_dict()
    bias = None if last.bias is None else last.bias.detach()
    columns = objective(last.weight.detach(), bias, H, labels, metrics["margin"], workers)
    # Of a network that has died the features are 0.
    length = columns["norm_H"]
    columns["balance"] = (columns["norm_W"] / length) ** 2 if length else math.inf
    held_out = held.metrics(test_labels, about=tracker.statistics(labels)).as_dict()
    metrics |= {f"test_{of}": held_out[of] for of in HELD_OUT}
    columns |= {of: math.nan if value is None else value for of, value in metrics.items()}
    return columns | dict(zip(ACCURACIES, accuracies, strict=True)), H


def depth_profile(net: Any, pixels: Pixels, data: Dataset, workers: Workers) -> LayerTable:
    """The metrics of the input of each convolution and linear layer but the first, over all ranks.

    Maps are averaged over their places, to one feature a channel.
    """
    net.eval()
    weighted = [
        name for name, m in net.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    mine = workers.mine(len(data.train_labels))
    labels = data.train_labels[mine]
    tracker = CollapseTracker(net, layers=weighted[1:], features="mean", keep="device")
    with torch.no_grad(), tracker:
        _accuracy(net, pixels, data.train_images[mine], labels, workers)
    net.train()
    found: LayerTable = tracker.metrics(labels)
    return found


def _accuracy(net: Any, pixels: Pixels, images: Tensor, labels: Tensor, workers: Workers) -> float:
    right = torch.zeros(2, dtype=torch.float64, device=images.device)
    right[1] = len(labels)
    for low in range(0, len(labels), _ROWS):
        rows = slice(low, low + _ROWS)
        right[0] += (net(pixels(images[rows])).argmax(1) == labels[rows]).sum()
    found, n = workers.sum(right).tolist()
    return float(found / n) if n else math.nan
