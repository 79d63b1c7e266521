"""Residuals and softmax weights at a point, over the loss: what curvature and KKT are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Residuals:
    """Residuals and softmax weights at (W, H), those of the loss divided by the loss itself.

    `scaled` (N, K) holds p_j / L at the wrong classes and 0 at the label, `residuals` (N, K) the
    same with minus the sum at the label, `weights` (N, K) the probabilities p.
    """

    def __init__(self, W: Array, H: Array, y: NDArray[np.int64]) -> None:
        rows = np.arange(len(y))
        gaps = H @ W.T
        gaps -= gaps[rows, y][:, None]
        gaps[rows, y] = -np.inf
        # One shift for all samples while everything is classified, so that no digit of a gap
        # is lost however large the margin; then each sample's own, so that nothing overflows.
        common = min(float(gaps.max()), 0.0)
        shift = np.maximum(gaps.max(axis=1), 0.0) if common == 0.0 else common
        e = np.exp(gaps - np.broadcast_to(shift, len(y))[:, None])
        S = e.sum(axis=1)
        if common == 0.0:
            den = np.exp(-shift) + S
            losses = np.where(shift == 0.0, np.log1p(S), shift + np.log(den))
            unit, label = np.ones(1), np.exp(-shift) / den
        else:
            unit = np.exp(np.full(1, common))
            x = unit * S
            den = 1.0 + x
            losses = S * np.divide(np.log1p(x), x, out=np.ones_like(x), where=x > 0.0)
            label = 1.0 / den
        total = float(losses.sum())
        e /= den[:, None]
        self.W, self.H, self.y = W, H, y
        self.log_loss = common + float(np.log(total))
        self.weights = e * unit
        self.weights[rows, y] = label
        self.scaled = e / total
        self.residuals = self.scaled.copy()
        self.residuals[rows, y] = -self.scaled.sum(axis=1)
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
        moved = dH @ self.W.T
        moved += self.H @ dW.T
        moved -= moved[rows, y][:, None]
        label = self.weights[rows, y] * np.einsum("ik,ik->i", self.scaled, moved)
        # `moved` is 0 at the label, so that the weights there do not count.
        moved -= np.einsum("ik,ik->i", self.weights, moved)[:, None]
        # (dr, r) side by side: one product, and no second array of the size of H.
        if self._beside is None:
            self._beside = np.concatenate([r, r], axis=1)
        dr = self._beside[:, :K]
        np.multiply(self.scaled, moved, out=dr)
        dr[rows, y] = -label
        out = np.empty_like(x)
        out[: K * d] = (dr.T @ self.H + r.T @ dH).ravel()
        np.matmul(self._beside, np.concatenate([self.W, dW]), out=out[K * d :].reshape(N, d))
        return out
