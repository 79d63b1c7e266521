"""Models of Table 1 with weight decay on a CUDA device: objective and gradients of tensors.

`(1/N) sum_i l(W h_i + b, y_i) + lW/2 |W|^2 + lH/2 |H|^2`, l the cross-entropy, of smoothed labels
too, or half the squared error. The cross-entropy runs on the kernels; the squared error is three
products, which torch makes, a chunk of rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc.dynamics.device_gradients import Factors, Found, FullBatch, Rows, Wanted
from fastnc.models import imbalanced_squared_error, squared_error

_SQUARED = (squared_error, imbalanced_squared_error)
# Logits of a chunk take this many bytes.
_CHUNK_BYTES = 1 << 26


class Penalised(FullBatch):
    """The objective of a model, and its gradients with respect to W, H and the bias."""

    has_log = False

    def __init__(self, labels: Tensor, model: Any) -> None:
        super().__init__(labels)
        self.model = model
        self.smoothing = float(getattr(model, "label_smoothing", 0.0))

    def at(self, factors: Factors, rows: Rows, wanted: Wanted) -> Found:
        """The gradients; the objective where it is wanted."""
        W, H, *rest = factors
        if isinstance(self.model, _SQUARED):
            found = _squared(W, H, rest, self.labels)
        elif rest or self.smoothing:
            found = self._weighted(W, H, rest)
        else:
            found = self.of_samples(W, H, self.labels, len(H), wanted)
        lW, lH = self.model.weight_decay_W, self.model.weight_decay_H
        value = found.value
        if value is not None:
            squares = (x.double().square().sum() for x in (W, H))
            for decay, square in zip((lW, lH), squares, strict=True):
                value = value + 0.5 * decay * square
        dW, dH, *dbias = found.gradients
        return Found((dW.add_(W, alpha=lW), dH.add_(H, alpha=lH), *dbias), value=value)

    def _weighted(self, W: Tensor, H: Tensor, rest: list[Tensor]) -> Found:
        """The mean cross-entropy with a bias or smoothed labels, by the torch loss's kernels."""
        from fastnc.kernels.gpu.weighted_cross_entropy import loss_and_grads

        empty = W.new_empty(0)
        total = torch.empty(1, dtype=torch.float64, device=W.device)
        grad_W, grad_H = torch.empty_like(W), torch.empty_like(H)
        grad_bias = W.new_empty(len(W) if rest else 0)
        loss_and_grads(
            W, H, self.labels, rest[0] if rest else empty, empty,
            self.smoothing, W.new_full((1,), 1.0 / len(H)), total,
            empty, grad_W, grad_H, grad_bias,
        )  # fmt: skip
        gradients = (grad_W, grad_H, grad_bias) if rest else (grad_W, grad_H)
        return Found(gradients, value=total[0] / len(H))

    def objective(self, W: Tensor, H: Tensor, bias: Tensor | None) -> float:
        """The objective at W and H, in their dtype."""
        factors = (W, H) if bias is None else (W, H, bias)
        found = self.at(factors, None, Wanted(value=True))
        assert found.value is not None
        return float(found.value)


def _squared(W: Tensor, H: Tensor, rest: list[Tensor], y: Tensor) -> Found:
    """`(1/(2N)) sum_i |W h_i + bias - e_{y_i}|^2` and its gradients."""
    N = len(H)
    value = torch.zeros((), dtype=torch.float64, device=W.device)
    grad_W, grad_H = torch.zeros_like(W), torch.empty_like(H)
    grad_bias = [torch.zeros_like(b) for b in rest]
    rows = max(1, _CHUNK_BYTES // (W.element_size() * len(W)))
    for low in range(0, N, rows):
        h = H[low : low + rows]
        R = h @ W.T
        for b in rest:
            R += b
        label = y[low : low + rows, None]
        R.scatter_add_(1, label, R.new_full((1, 1), -1.0).expand(len(h), 1))
        value += R.square().sum(dtype=torch.float64) / (2 * N)
        R /= N
        grad_W.addmm_(R.T, h)
        torch.mm(R, W, out=grad_H[low : low + rows])
        for g in grad_bias:
            g += R.sum(0)
    return Found((grad_W, grad_H, *grad_bias), value=value)
