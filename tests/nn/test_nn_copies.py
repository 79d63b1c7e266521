"""The tracker beside copies of the network, and layers under two names."""

import copy

import numpy as np
import torch
from torch import nn

from fastnc.nn import CollapseTracker


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_a_copy_made_while_the_tracker_is_open_is_not_tracked():
    """As the average of a network's weights is made: a deep copy has the hooks too."""
    net, x, y = network(), torch.randn(30, 6), torch.arange(30) % 3
    for at, layer in (("input", "2"), ("output", "1")):
        tracker = CollapseTracker(net, layer, at=at)
        with torch.no_grad(), tracker:
            average = copy.deepcopy(net)
            tracker.labels(y)
            net(x)
            average(x + 1.0)
        with torch.no_grad():
            average(x + 2.0)
            want = net[:2](x)
        assert tracker.metrics().n_samples == 30
        assert np.array_equal(tracker.features.numpy(), want.numpy())


def test_a_layer_under_two_names_is_tracked_under_either():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 3)
            self.second = self.first

        def forward(self, x):
            return self.second(x)

    net, x, y = Tied().eval(), torch.randn(12, 6), torch.arange(12) % 3
    for name in ("first", "second"):
        tracker = CollapseTracker(net, name)
        with torch.no_grad(), tracker:
            tracker.labels(y)
            net(x)
        assert np.array_equal(tracker.features.numpy(), x.numpy())
        assert tracker.metrics().n_rows == 3
