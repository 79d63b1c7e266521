"""Residuals and softmax weights at a point, divided by the loss, for curvature and KKT."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.reference import scaled_softmax_at

Array = NDArray[Any]


class Residuals:
    """Residuals and softmax weights at (W, H), those of the loss divided by the loss itself.

    `scaled` (N, K) holds p_j / L at the wrong classes and 0 at the label, `residuals` (N, K) the
    same with minus the sum at the label, `weights` (N, K) the probabilities p.
    """

    def __init__(self, W: Array, H: Array, y: NDArray[np.int64]) -> None:
        rows = np.arange(len(y))
        log_unit, (losses, r, label) = scaled_softmax_at(W, H, y)
        total = float(losses.sum())
        self.W, self.H, self.y = W, H, y
        self.log_loss = log_unit + float(np.log(total))
        self.weights = r * np.exp(log_unit)
        self.weights[rows, y] = label
        self.residuals = r / total
        self.scaled = self.residuals.copy()
        self.scaled[rows, y] = 0.0
        self._likely = self.weights.argmax(axis=1)
        self._beside: Array | None = None

    def curvatures(self) -> Array:
        """`S_i = (diag(p) - p p^T) / L` (N, K, K), without a cancellation in the tail."""
        K = self.weights.shape[1]
        rows, y = np.arange(len(self.y)), self.y
        S: Array = -self.scaled[:, :, None] * self.weights[:, None, :]
        S[:, np.arange(K), np.arange(K)] += self.scaled
        S[rows, y, :] = S[rows, :, y]
        S[rows, y, y] = -self.weights[rows, y] * self.residuals[rows, y]
        return S

    def hessian_product(self, x: Array) -> Array:
        """The Hessian of (4), divided by the loss, times a direction: exact at any margin.

        `x` ((K + N) d,) is W's part by rows, then H's; so is what is returned.
        """
        (K, d), N = self.W.shape, len(self.H)
        dW, dH = x[: K * d].reshape(K, d), x[K * d :].reshape(N, d)
        rows, y, r = np.arange(N), self.y, self.residuals
        dZ = dH @ self.W.T
        dZ += self.H @ dW.T
        # To the most likely class, so that nothing cancels there.
        dZ -= dZ[rows, self._likely][:, None]
        by_others = np.einsum("ik,ik->i", self.scaled, dZ)
        dZ -= np.einsum("ik,ik->i", self.weights, dZ)[:, None]
        # Where the label is most likely the mean may underflow, and over the loss it does not.
        # Where another class is, the loss is at least log 2.
        own = dZ[rows, y] * np.exp(-max(self.log_loss, -1.0))
        label = self.weights[rows, y] * np.where(self._likely == y, by_others, -own)
        # (dr, r) side by side: one product, and no second array of the size of H.
        if self._beside is None:
            self._beside = np.concatenate([r, r], axis=1)
        dr = self._beside[:, :K]
        np.multiply(self.scaled, dZ, out=dr)
        dr[rows, y] = -label
        out = np.empty_like(x)
        out[: K * d] = (dr.T @ self.H + r.T @ dH).ravel()
        np.matmul(self._beside, np.concatenate([self.W, dW]), out=out[K * d :].reshape(N, d))
        return out
