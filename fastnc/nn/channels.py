"""Which axis of a tensor that enters or leaves a layer holds its channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# Modules whose features come last in a tensor of any number of dimensions.
_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention)
# Modules that keep channels second in tensors of three dimensions too.
_SECOND = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm,
    nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.AvgPool1d, nn.MaxPool1d, nn.MaxUnpool1d,
    nn.LPPool1d, nn.Dropout1d, nn.Upsample,
)  # fmt: skip
# The channels that enter and that leave modules with a weight.
_WIDTHS = (
    (nn.Linear, "in_features", "out_features"),
    (nn.modules.conv._ConvNd, "in_channels", "out_channels"),
    (nn.modules.batchnorm._NormBase, "num_features", "num_features"),
    (nn.GroupNorm, "num_channels", "num_channels"),
    (nn.LayerNorm, "normalized_shape", "normalized_shape"),
    (nn.Embedding, "", "embedding_dim"),
)


def channels_last(module: nn.Module, at: str, h: Tensor) -> bool:
    """Whether `h` (B, ...), which enters or leaves `module`, has its channels last, not second.

    They are on the axis that is as wide as the first, or the last, weighted layer of the module.
    Where that is both or neither, its kind decides, and then the number of dimensions: a
    tensor of three is (B, T, d).
    """
    found = [(m, width) for m in module.modules() if (width := _width(m, at)) is not None]
    if found:
        layer, width = found[0] if at == "input" else found[-1]
        second, last = h.shape[1] == width, h.shape[-1] == width
        # Maps may be wider than a convolution within them: a dense block's hold several.
        if second != last and not (h.dim() > 3 and isinstance(layer, _SECOND)):
            return last
    if isinstance(module, _LAST):
        # torchvision's and timm's layer norms of maps are named so, and keep channels second.
        return not type(module).__name__.endswith("2d")
    return h.dim() == 3 and not isinstance(module, _SECOND)


def _width(module: nn.Module, at: str) -> int | None:
    """The channels that enter or leave a layer with a weight; None of all others."""
    for kind, enters, leaves in _WIDTHS:
        if isinstance(module, kind):
            width: Any = getattr(module, enters if at == "input" else leaves, None)
            found: int | None = width[-1] if isinstance(width, tuple) else width
            return found
    return None
