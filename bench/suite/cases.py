"""The regimes, once, for benchmarks and tests: shapes, what is run on them, and what is wanted.

Letters: K classes, d features, N samples. `shares` are the wanted shares of the floor that
`roofline` measures on the same machine, with vectors of 64 bytes and with narrower ones; `ratio`
is how many times faster than the fastest peer.
Operations: "trajectory" is epochs of descent, "step" one of them, "grads" the loss and both
gradients, "torch loss" the same by `fastnc.nn` and autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """One regime."""

    name: str
    n_classes: int
    dim: int
    n_samples: int
    operation: str
    shares: tuple[float, float]
    ratio: float

    @property
    def flops(self) -> float:
        """Three products of K x d and N: the logits and both gradients."""
        return 6.0 * self.n_classes * self.n_samples * self.dim

    @property
    def exponentials(self) -> float:
        """One a logit."""
        return float(self.n_classes * self.n_samples)

    def bytes(self, itemsize: int) -> float:
        """H read once, and H or its gradient written once."""
        return 2.0 * itemsize * self.n_samples * self.dim

    def arrays(self, dtype="float32", labels="unsorted", seed=0):
        """W, H, y of the model's start; `labels` "sorted", "unsorted" or "unbalanced"."""
        rng = np.random.default_rng(seed)
        K, d, N = self.n_classes, self.dim, self.n_samples
        W = (rng.standard_normal((K, d), dtype=np.float32) / np.sqrt(d)).astype(dtype)
        H = (rng.standard_normal((N, d), dtype=np.float32) / np.sqrt(d)).astype(dtype)
        match labels:
            case "sorted":
                y = np.sort(np.arange(N) % K)
            case "unsorted":
                y = rng.permutation(np.arange(N) % K)
            case "unbalanced":
                # Nine samples in ten are of one class; most of a long tail may be absent.
                y = np.where(rng.random(N) < 0.9, 0, rng.integers(0, K, N))
            case other:
                raise ValueError(f"`labels` must be one of the three; got {other!r}.")
        return W, H, y


TRAJECTORIES = (
    Case("tiny", 5, 20, 50, "trajectory", (0.3, 0.85), 6.0),
    Case("middle", 10, 64, 1000, "trajectory", (0.3, 0.7), 2.4),
    Case("middle_wide", 100, 128, 1000, "trajectory", (0.75, 0.8), 1.3),
)
OBJECTIVES = (
    Case("few_classes", 10, 64, 200_000, "step", (0.55, 0.6), 3.5),
    Case("few_classes_deep", 10, 512, 100_000, "step", (0.6, 0.8), 3.5),
    Case("hundred_classes", 100, 128, 100_000, "grads", (0.7, 0.8), 1.8),
    Case("thousand_classes", 1000, 64, 20_000, "grads", (0.75, 0.88), 1.4),
    Case("thousand_classes_deep", 1000, 512, 20_000, "grads", (0.85, 0.9), 1.1),
    Case("ten_thousand_classes", 10_000, 128, 4_000, "grads", (0.75, 0.82), 1.15),
    Case("fifty_thousand_classes", 50_000, 256, 1_000, "grads", (0.7, 0.75), 1.15),
)
# The torch loss, forward and backward, where what a call costs is the Python around it.
TORCH_LOSSES = (Case("tiny_torch_loss", 5, 20, 50, "torch loss", (0.0, 0.0), 1.1),)
CASES = {case.name: case for case in (*TRAJECTORIES, *OBJECTIVES)}
# What a benchmark runs three sizes of, in a second or two.
SCALING = (1_000, 10_000, 100_000)
