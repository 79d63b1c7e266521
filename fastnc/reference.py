"""The paper's equations in NumPy float64, one function each: the oracle of every kernel.

Letters: K classes, d features, N samples, `W (K, d)`, `H (N, d)` with one sample per row
(the paper's H is the transpose), `y (N,)` in 0..K-1. Written for reading, not for speed:
every function forms the N x K logits.

The label's logit is subtracted first, `D_j = z_j - z_y`, or the largest logit where another one is
larger, and the residual's label entry is minus the sum of its other entries, never
`p_y - 1`: every term is positive, nothing cancels, and the tail of the loss keeps all its digits
at any margin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]


# --- Section 2.2: the objective (4) -------------------------------------------------------


def logit_gaps(W: Floats, H: Floats, y: Labels) -> Floats:
    """`D[i, j] = <w_j - w_{y_i}, h_i>` (N, K), with -inf in the label's own place."""
    Z = H @ W.T
    rows = np.arange(len(y))
    D = Z - Z[rows, y][:, None]
    D[rows, y] = -np.inf
    return D


class Softmax(NamedTuple):
    """Results of `softmax`: losses (N,), residuals p - onehot (N, K), p_y (N,)."""

    losses: Floats
    residuals: Floats
    label_probability: Floats


def common_unit(D: Floats) -> float:
    """The shift for `softmax`: the largest of all gaps if all are negative, else 0.

    With one shift for all samples no digit of a gap is lost, however large the margin.
    """
    return min(float(D.max()), 0.0)


def below_largest(W: Floats, H: Floats, y: Labels) -> Floats:
    """`z_j - max_k z_k` (N, K), with -inf in the label's own place.

    Where the label's logit is far below the others, every `D_j` is large and has lost digits of
    the differences between the others; these keep them.
    """
    Z = H @ W.T
    B: Floats = Z - Z.max(axis=1)[:, None]
    B[np.arange(len(y)), y] = -np.inf
    return B


def softmax(D: Floats, y: Labels, log_unit: float = 0.0, B: Floats | None = None) -> Softmax:
    """Losses `log(1 + sum_{j != y} e^{D_j})` and residuals, without a cancellation.

    With `log_unit` from `common_unit`, losses and residuals are divided by `exp(log_unit)`. `B`,
    from `below_largest`, is `D` minus its positive maximum by default.
    """
    rows = np.arange(len(y))
    if log_unit < 0.0:
        e = np.exp(D - log_unit)
        S = e.sum(axis=1)
        x = np.exp(log_unit) * S
        den, label = 1.0 + x, 1.0 / (1.0 + x)
        losses = S * np.divide(np.log1p(x), x, out=np.ones_like(x), where=x > 0.0)
    else:
        m = np.maximum(D.max(axis=1), 0.0)
        e = np.exp(D - m[:, None] if B is None else B)
        S = e.sum(axis=1)
        den = np.exp(-m) + S
        losses, label = np.where(m == 0.0, np.log1p(S), m + np.log(den)), np.exp(-m) / den
    r = e / den[:, None]
    r[rows, y] = -S / den
    return Softmax(losses, r, label)


def softmax_at(W: Floats, H: Floats, y: Labels) -> Softmax:
    """`softmax` of the logits of W and H, with all the digits that the logits have."""
    return softmax(logit_gaps(W, H, y), y, B=below_largest(W, H, y))


def scaled_softmax_at(W: Floats, H: Floats, y: Labels) -> tuple[float, Softmax]:
    """`common_unit`, and `softmax` divided by its exponential: no underflow at any margin."""
    D = logit_gaps(W, H, y)
    log_unit = common_unit(D)
    B = below_largest(W, H, y) if log_unit == 0.0 else None
    return log_unit, softmax(D, y, log_unit, B)


def loss(W: Floats, H: Floats, y: Labels) -> float:
    """Equation (4): `sum_i log(1 + sum_{j != y} exp(z_j - z_y))`."""
    return float(softmax_at(W, H, y).losses.sum())


def loss_and_grads(W: Floats, H: Floats, y: Labels) -> tuple[float, Floats, Floats]:
    """Equation (4) and its gradients `r^T H (K, d)` and `r W (N, d)`."""
    losses, r, _ = softmax_at(W, H, y)
    return float(losses.sum()), r.T @ H, r @ W


def log_loss_and_grads(W: Floats, H: Floats, y: Labels) -> tuple[float, Floats, Floats]:
    """log of (4), and its gradients divided by (4): finite at any margin."""
    log_unit, (losses, r, _) = scaled_softmax_at(W, H, y)
    L = losses.sum()
    r /= L
    return float(log_unit + np.log(L)), r.T @ H, r @ W


def gradient_step(W: Floats, H: Floats, y: Labels, lr: float) -> tuple[float, Floats, Floats]:
    """One step of gradient descent on (4): the loss before it, and the new W and H."""
    value, grad_W, grad_H = loss_and_grads(W, H, y)
    return value, W - lr * grad_W, H - lr * grad_H


def hessian_vector_product(
    W: Floats, H: Floats, y: Labels, dW: Floats, dH: Floats
) -> tuple[Floats, Floats]:
    """The derivative of the gradients of (4) along (dW, dH).

    With `V_j` the derivative of a logit less that of the most likely class's, and
    `s = sum_j p_j V_j`, the residual's derivative is `p_j (V_j - s)`: again no cancellation.
    """
    rows = np.arange(len(y))
    _, r, p_y = softmax_at(W, H, y)
    p = r.copy()
    p[rows, y] = p_y
    Z = dH @ W.T + H @ dW.T
    V = Z - Z[rows, p.argmax(axis=1)][:, None]
    dr = p * (V - (p * V).sum(axis=1)[:, None])
    return dr.T @ H + r.T @ dH, dr @ W + r @ dW


# --- Section 2.1 and 3.1.1: collapse and its margin ---------------------------------------


def simplex_etf(n_classes: int) -> Floats:
    """Definition 2.1 with Q = I: `sqrt(K/(K-1)) (I - 11^T/K)`, rows of unit length."""
    K = n_classes
    etf: Floats = np.sqrt(K / (K - 1)) * (np.eye(K) - 1.0 / K)
    return etf


def margins(W: Floats, H: Floats, y: Labels) -> Floats:
    """`q_i = z_y - max_{j != y} z_j` (N,), section 3.1.1."""
    largest: Floats = logit_gaps(W, H, y).max(axis=1)
    return -largest


def neural_collapse_margin(W: Floats, H: Floats, y: Labels) -> float:
    """Definition 3.1: the smallest margin of the data set."""
    return float(margins(W, H, y).min())


def separation_constant(counts: ArrayLike) -> float:
    """Nuclear norm of `(I - 11^T/K) diag(sqrt n_k)`: `(K-1) sqrt n` for equal class sizes."""
    n = np.asarray(counts, dtype=np.float64)
    centred = np.diag(np.sqrt(n)) - np.sqrt(n) / len(n)
    return float(np.linalg.svd(centred, compute_uv=False).sum())


def margin_ratio(W: Floats, H: Floats, y: Labels) -> float:
    """Lemma 3.1: `q_min 2 (K-1) sqrt n / (|W|^2 + |H|^2)`, at most 1, and 1 at collapse."""
    counts = np.bincount(y, minlength=len(W))
    energy = (W**2).sum() + (H**2).sum()
    return 2.0 * separation_constant(counts) * neural_collapse_margin(W, H, y) / float(energy)


# --- Section 4: the quantities of Figure 2 ------------------------------------------------


def class_means(H: Floats, y: Labels) -> Floats:
    """Means of the classes that occur, in the order of their labels (K', d)."""
    return np.stack([H[y == k].mean(axis=0) for k in np.unique(y)])


def equinorm(vectors: Floats) -> float:
    """Std / Avg (ddof 0) of the norms of the rows, centred by their mean."""
    norms = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    return float(norms.std() / norms.mean())


def equiangular(vectors: Floats) -> float:
    """Avg over pairs of `|cos + 1/(K-1)|` of the centred rows."""
    V = vectors - vectors.mean(axis=0)
    V = V / np.linalg.norm(V, axis=1, keepdims=True)
    K = len(V)
    cosines = (V @ V.T)[np.triu_indices(K, 1)]
    return float(np.abs(cosines + 1.0 / (K - 1)).mean())


def within_class(H: Floats, y: Labels) -> float:
    """`Avg |h_i - m_{y_i}| / Avg |h_i - g|`, g the mean of the class means."""
    means = class_means(H, y)
    own = means[np.searchsorted(np.unique(y), y)]
    deviation = np.linalg.norm(H - own, axis=1).mean()
    return float(deviation / np.linalg.norm(H - means.mean(axis=0), axis=1).mean())


def self_duality(W: Floats, means: Floats) -> float:
    """`Avg_k |(m_k - g)/|m_k - g| - (w_k - wbar)/|w_k - wbar||`."""
    M = means - means.mean(axis=0)
    V = W - W.mean(axis=0)
    M = M / np.linalg.norm(M, axis=1, keepdims=True)
    V = V / np.linalg.norm(V, axis=1, keepdims=True)
    return float(np.linalg.norm(M - V, axis=1).mean())


def nc1(H: Floats, y: Labels) -> float:
    """`tr(Sigma_W Sigma_B^+) / K` of Papyan et al. (2020), by the d x d pseudo-inverse."""
    means = class_means(H, y)
    own = means[np.searchsorted(np.unique(y), y)]
    centred = means - means.mean(axis=0)
    within = (H - own).T @ (H - own) / len(H)
    between = centred.T @ centred / len(means)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-12)) / len(means))
