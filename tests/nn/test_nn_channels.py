"""The axis of a layer's channels: of maps, sequences, and what keeps its channels last."""

import pytest
import torch
from torch import nn

from fastnc.nn import CollapseTracker


class LayerNorm2d(nn.LayerNorm):
    """As torchvision's ConvNeXt has it: of maps with channels second."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Activation(nn.Module):
    def forward(self, x):
        return x.relu()


class Dense(nn.Module):
    """A dense block: its maps of 8 channels are followed by 4 new ones, as many as columns."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return torch.cat([x, self.conv(x)], 1)


SEQUENCE, MAP, LAST = (6, 8, 5), (6, 8, 5, 4), (6, 5, 4, 8)


@pytest.mark.parametrize(
    ("layer", "shape", "second"),
    [
        (LayerNorm2d(8), MAP, True),
        (LayerNorm2d(8), (6, 8, 5, 8), True),
        (nn.LayerNorm(8), LAST, False),
        (nn.GroupNorm(2, 8), SEQUENCE, True),
        (nn.InstanceNorm1d(8, affine=True), SEQUENCE, True),
        (nn.BatchNorm1d(8), (6, 8, 8), True),
        (nn.AdaptiveMaxPool1d(5), SEQUENCE, True),
        (nn.Conv1d(8, 8, 1), SEQUENCE, True),
        (nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU()), SEQUENCE, True),
        # Blocks of a Swin transformer, and of ConvNeXt, which turns its maps round within.
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), LAST, False),
        (nn.Sequential(nn.Conv2d(8, 8, 1), LayerNorm2d(8)), MAP, True),
        (Dense(), MAP, True),
        (nn.Linear(8, 8), (6, 8, 3, 8), False),
        (Activation(), SEQUENCE, False),
        (Activation(), MAP, True),
    ],
)
@pytest.mark.parametrize("at", ["input", "output"])
def test_the_mean_over_places(layer, shape, second, at):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(layer).eval()
    tracker = CollapseTracker(model, "0", at=at, features="mean", classifier=None)
    with torch.no_grad(), tracker:
        out = model(x)
    h = x if at == "input" else out
    h = h.flatten(2).mean(2) if second else h.flatten(1, -2).mean(1)
    # Means of at most 32 numbers in single precision, in another order.
    torch.testing.assert_close(tracker.features, h, rtol=1e-5, atol=1e-6)
