"""For torch: the loss as a drop-in, its module, and a tracker of collapse. No mathematics.

Instead of `F.cross_entropy(h @ W.T + b, y)` write
`fastnc.nn.linear_cross_entropy(h, W, y, linear_bias=b)`: the N x K logits are never formed, and
loss and gradients keep all their digits however well the samples are classified.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ImportError(
        "`fastnc.nn` needs torch, which is not installed; run `pip install 'fastnc[torch]'`."
    ) from None

from fastnc.nn.functional import linear_cross_entropy
from fastnc.nn.loss import LinearCrossEntropyLoss
from fastnc.nn.tracker import CollapseTracker

__all__ = ["CollapseTracker", "LinearCrossEntropyLoss", "linear_cross_entropy"]
