"""The update rules as plain loops of NumPy, beside the rules of fastnc that they are to equal."""

import numpy as np

import fastnc

R = fastnc.rules
MODEL = fastnc.ULPM(n_classes=4, n_per_class=5, dim=6)
EPOCHS = 1000


def gradients(W, H, y):
    """dL/dW and dL/dH of the mean loss, from the definition."""
    Z = H @ W.T
    p = np.exp(Z - Z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    p /= len(y)
    return [p.T @ H, p @ W]


def loop(move, epochs=EPOCHS, y=MODEL.y, model=MODEL):
    """`move(t, theta, grads)` returns theta; t counts from 1."""
    theta = list(model.init(0))
    for t in range(1, epochs + 1):
        theta = move(t, theta, gradients(*theta, y))
    return theta


def momentum(mu, lr, nesterov=False, decay=0.0):
    m = [0.0, 0.0]

    def move(t, theta, grads):
        for i, g in enumerate(grads):
            g = g + decay * theta[i]
            m[i] = mu * m[i] + g
            theta[i] = theta[i] - lr * (g + mu * m[i] if nesterov else m[i])
        return theta

    return move


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, coupled=0.0, decoupled=0.0):
    m, v = [0.0, 0.0], [0.0, 0.0]

    def move(t, theta, grads):
        for i, g in enumerate(grads):
            g = g + coupled * theta[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            step = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
            theta[i] = theta[i] - lr(t) * (step + decoupled * theta[i])
        return theta

    return move


def normalised(lr, per_factor):
    def move(t, theta, grads):
        norms = [np.linalg.norm(g) for g in grads]
        if not per_factor:
            norms = [np.hypot(*norms)] * 2
        return [x - lr * g / n for x, g, n in zip(theta, grads, norms, strict=True)]

    return move


def spectral(lr):
    def move(t, theta, grads):
        out = []
        for x, g in zip(theta, grads, strict=True):
            U, s, V = np.linalg.svd(g, full_matrices=False)
            keep = s > 1e-12 * s[0]
            out.append(x - lr * U[:, keep] @ V[keep])
        return out

    return move


def sharpness_aware(lr, radius):
    def move(t, theta, grads):
        norm = np.hypot(*(np.linalg.norm(g) for g in grads))
        there = [x + radius * g / norm for x, g in zip(theta, grads, strict=True)]
        return [x - lr * g for x, g in zip(theta, gradients(*there, MODEL.y), strict=True)]

    return move


def signs(lr):
    return lambda t, theta, grads: [x - lr * np.sign(g) for x, g in zip(theta, grads, strict=True)]


CASES = {
    "constant": (R.GradientDescent(2.0), momentum(0.0, 2.0)),
    "decayed": (R.GradientDescent(2.0, weight_decay=1e-3), momentum(0.0, 2.0, decay=1e-3)),
    "heavy ball": (R.Momentum(0.5, 0.9), momentum(0.9, 0.5)),
    "nesterov": (R.Momentum(0.5, 0.8, nesterov=True), momentum(0.8, 0.5, True)),
    "adam": (R.Adam(1e-2), adam(lambda t: 1e-2)),
    "adam, coupled": (R.Adam(1e-2, weight_decay=1e-3), adam(lambda t: 1e-2, coupled=1e-3)),
    "adam, no epsilon": (R.Adam(1e-3, (0.9, 0.99), 0.0), adam(lambda t: 1e-3, 0.9, 0.99, 0.0)),
    "adamw": (R.AdamW(1e-2, weight_decay=0.1), adam(lambda t: 1e-2, decoupled=0.1)),
    "sign": (R.SignDescent(1e-3), signs(1e-3)),
    "normalised": (R.NormalizedDescent(0.01), normalised(0.01, False)),
    "normalised, per factor": (R.NormalizedDescent(0.01, per_factor=True), normalised(0.01, True)),
    "spectral": (R.SpectralDescent(2e-3), spectral(2e-3)),
    "sharpness-aware": (R.SharpnessAware(0.5, radius=0.1), sharpness_aware(0.5, 0.1)),
    "cosine": (
        R.Adam(R.Cosine(1e-2, 900)),
        adam(lambda t: 0.005 * (1 + np.cos(np.pi * min((t - 1) / 900, 1.0)))),
    ),
    "power": (R.Adam(R.Power(1e-2, 0.5)), adam(lambda t: 1e-2 / np.sqrt(t))),
    "steps": (
        R.Adam(R.Steps(1e-2, (100, 500))),
        adam(lambda t: 1e-2 * 0.1 ** ((t > 100) + (t > 500))),
    ),
    "warm-up": (R.Adam(R.WarmUp(1e-2, 50)), adam(lambda t: 1e-2 * min(t / 50, 1))),
    "function": (R.Adam(lambda e: 1e-2 / (1 + e)), adam(lambda t: 1e-2 / t)),
}
