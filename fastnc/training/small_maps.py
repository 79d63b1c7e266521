"""3 x 3 convolutions on maps of one or four pixels, each as one matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Where a convolution mostly reads padding, a library's kernels are slow. On two Sapphire Rapids
# cores, 512 channels and 50 maps of 2 x 2, forward and backward: 60 ms by oneDNN in float32 and
# 45 ms in bfloat16; as products 31 ms and 7 ms. At 4 x 4 products are no faster.
_SIDE = 2


class SmallMapConv2d(nn.Conv2d):
    """A convolution whose result on small maps on a CPU is one product of matrices.

    The patches (N S S, 9 C) times the kernels (9 C, O); on maps of one pixel the kernels' centres
    alone. The parameters and their names are those of `torch.nn.Conv2d`. Equivalent to it up to
    the order of the sums.

    Cost: a copy of 9 C numbers a pixel, at most 36 C a map.
    """

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        if max(height, width) > _SIDE or x.device.type != "cpu":
            return super().forward(x)
        if height == width == 1:
            y = F.linear(x.flatten(1), self.weight[:, :, 1, 1], self.bias)
            return y.view(n, -1, 1, 1)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
        # The weights are channels last: this is a view.
        kernels = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 9 * channels)
        y = F.linear(patches.reshape(n * height * width, 9 * channels), kernels, self.bias)
        return y.view(n, height, width, -1).permute(0, 3, 1, 2)


def with_small_maps(net: Any) -> Any:
    """`net` with a `SmallMapConv2d` for every 3 x 3 convolution that keeps the map's size."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and _suits(child):
                # On "meta" nothing is allocated for the parameters that are replaced at once.
                with torch.device("meta"):
                    twin = SmallMapConv2d(
                        child.in_channels, child.out_channels, 3, padding=1,
                        bias=child.bias is not None,
                    )  # fmt: skip
                twin.weight, twin.bias = child.weight, child.bias
                setattr(parent, name, twin)
    return net


def _suits(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.padding, conv.stride, conv.dilation)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1
