"""Sources of gradients on a CUDA device: those of `gradients`, for tensors.

Nothing here waits for the device: losses, residuals and steps stay tensors. Batches, flipped
labels and noise are drawn by the device's generators, whose numbers differ from NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastnc._core.ranks import Workers
from fastnc.dynamics.randomness import BATCHES, LABELS, NOISE

# A float64 copy of a chunk of this many bytes is made at a time.
_CHUNK_BYTES = 1 << 26
Factors = tuple[Tensor, ...]
Rows = Tensor | None


class Wanted(NamedTuple):
    """Which numbers are computed beside the gradients."""

    of_log_loss: bool = False
    """Gradients of log L, and log L itself."""
    residual: bool = False
    """The largest entry of dlog L/dZ."""
    value: bool = False
    """L."""


class Found(NamedTuple):
    """Gradients of L or of log L; the wanted numbers, as tensors () in float64."""

    gradients: Factors
    log_loss: Tensor | None = None
    value: Tensor | None = None
    residual: Tensor | None = None


class FullBatch:
    """The mean loss (4) of all samples, by the kernels."""

    steps = 1
    has_log = captures = True
    """Whether it has gradients of log L; whether a CUDA graph can hold its epochs."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self._room: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}

    def epoch(self) -> Iterator[Rows]:
        """The samples of each step of an epoch; None stands for all."""
        yield None

    def at(self, factors: Factors, rows: Rows, wanted: Wanted) -> Found:
        """The loss of these samples and its gradients."""
        return self.of_samples(factors[0], factors[1], self.labels, len(self.labels), wanted)

    def of_samples(self, W: Tensor, H: Tensor, y: Tensor, n: int, wanted: Wanted) -> Found:
        """The samples' losses over n, and their gradients, which the next call overwrites."""
        from fastnc.kernels.gpu import cross_entropy
        from fastnc.kernels.gpu.plan import EXACT

        key = tuple(W.shape), tuple(H.shape), W.dtype
        if key not in self._room:
            loss = torch.empty(1, dtype=torch.float64, device=W.device)
            self._room[key] = loss, torch.empty_like(W), torch.empty_like(H)
        loss, *gradients = self._room[key]
        if wanted.of_log_loss:
            cross_entropy.log_loss_and_grads(W, H, y, loss, *gradients, EXACT)
            log_sum, residual = loss[0], None
            if wanted.residual:
                gap = largest_gap(W, H, y)
                residual = torch.exp(torch.nn.functional.logsigmoid(gap) - log_sum)
            mean = log_sum - math.log(n)
            return Found(tuple(gradients), mean, mean.exp(), residual)
        out = loss if wanted.value else None
        cross_entropy.loss_and_grads(W, H, y, 1.0 / n, out, *gradients, EXACT)
        return Found(tuple(gradients), value=loss[0] if wanted.value else None)


def largest_gap(W: Tensor, H: Tensor, y: Tensor) -> Tensor:
    """`max_i log sum_{j != y_i} exp(z_j - z_y)`, of the sample with the largest residual.

    The largest entry of that residual, `1 / (1 + e^-gap)`, is at the label.
    """
    W, largest = W.double(), torch.full((), -math.inf, dtype=torch.float64, device=W.device)
    rows = max(1, _CHUNK_BYTES // (8 * sum(W.shape)))
    for low in range(0, len(H), rows):
        label = y[low : low + rows, None]
        Z = H[low : low + rows].double() @ W.T
        Z = (Z - Z.gather(1, label)).scatter_(1, label, -math.inf)
        largest = torch.maximum(largest, torch.logsumexp(Z, 1).max())
    return largest


class Drawing:
    """A generator of the device, one of several of a seed."""

    def __init__(self, seed: int, stream: int, device: Any) -> None:
        (word,) = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
        self.generator = torch.Generator(device)
        self.generator.manual_seed(int(word) >> 1)
        self.options = {"generator": self.generator, "device": device}


class MiniBatch(FullBatch):
    """The mean loss of some samples a step; those not drawn have a gradient of 0."""

    captures = False

    def __init__(self, labels: Tensor, size: int, replacement: bool, seed: int) -> None:
        super().__init__(labels)
        self.size, self.replacement = size, replacement
        self.steps = -(-len(labels) // size)
        self.drawing = Drawing(seed, BATCHES, labels.device)

    def epoch(self) -> Iterator[Rows]:
        """Batches of nearly equal size that take each sample once, or as many draws of `size`."""
        n, steps, options = len(self.labels), self.steps, self.drawing.options
        if self.replacement:
            for _ in range(steps):
                yield torch.randint(0, n, (self.size,), **options)
            return
        order = torch.randperm(n, **options)
        for step in range(steps):
            yield order[n * step // steps : n * (step + 1) // steps]

    def at(self, factors: Factors, rows: Rows, wanted: Wanted) -> Found:
        """The rows of H gathered, and their gradients put in their places."""
        if rows is None:
            return super().at(factors, rows, wanted)
        W, H = factors[:2]
        found = self.of_samples(W, H[rows].contiguous(), self.labels[rows], len(rows), wanted)
        # A sample that was drawn twice counts twice; sorted before they are added up: no atomics.
        grad_H = torch.zeros_like(H).index_put_((rows,), found.gradients[1], accumulate=True)
        return found._replace(gradients=(found.gradients[0], grad_H))


class LabelNoise:
    """A source whose labels each step replaces, with probability `share`, by a wrong class."""

    captures = False

    def __init__(self, source: FullBatch, n_classes: int, share: float, seed: int) -> None:
        self.source, self.n_classes, self.share = source, n_classes, share
        self.noise = f"`label_noise`={share:g}"
        self.labels, self.steps, self.has_log = source.labels, source.steps, source.has_log
        self.drawing = Drawing(seed, LABELS, source.labels.device)

    def epoch(self) -> Iterator[Rows]:
        """As the source."""
        yield from self.source.epoch()

    def at(self, factors: Factors, rows: Rows, wanted: Wanted) -> Found:
        """With labels drawn anew."""
        options, n = self.drawing.options, len(self.labels)
        flipped = torch.rand(n, **options) < self.share
        shift = torch.randint(1, self.n_classes, (n,), **options)
        other = (self.labels + shift) % self.n_classes
        self.source.labels = torch.where(flipped, other, self.labels)
        return self.source.at(factors, rows, wanted)


class GaussianNoise:
    """A source with `size` times a standard normal number added to each entry of its gradients."""

    has_log = captures = False

    def __init__(self, source: Any, size: float, seed: int, device: Any) -> None:
        self.source, self.size, self.steps = source, size, source.steps
        self.noise = f"`noise`={size:g}"
        self.drawing = Drawing(seed, NOISE, device)

    def epoch(self) -> Iterator[Rows]:
        """As the source."""
        yield from self.source.epoch()

    def at(self, factors: Factors, rows: Rows, wanted: Wanted) -> Found:
        """The source's gradients and a draw, for W first, then for H, then for a bias."""
        found: Found = self.source.at(factors, rows, wanted)
        noisy = tuple(
            g.add(torch.randn(g.shape, dtype=g.dtype, **self.drawing.options), alpha=self.size)
            for g in found.gradients
        )
        return found._replace(gradients=noisy)


class OverRanks(FullBatch):
    """The mean loss of the samples of all ranks, each of which has some rows of H and all of W."""

    has_log = False

    def __init__(self, labels: Tensor, W: Tensor, n_samples: int, workers: Workers) -> None:
        super().__init__(labels)
        self.n_samples, self.workers = n_samples, workers
        self._shared = torch.empty_like(W, dtype=torch.float64)
        self._grad_H = W.new_empty(len(labels), W.shape[1])

    def at(self, factors: Factors, rows: Rows, wanted: Wanted) -> Found:
        """Only dL/dW, K d numbers, is exchanged, in float64."""
        from fastnc.kernels.gpu.cross_entropy import grads_over_ranks
        from fastnc.kernels.gpu.plan import EXACT

        W, H = factors[:2]
        scale, begin = 1.0 / self.n_samples, self.workers.sum_later
        grads_over_ranks(W, H, self.labels, scale, self._shared, self._grad_H, begin, EXACT)
        return Found((self._shared.to(W.dtype), self._grad_H))


def generators(source: Any) -> dict[str, torch.Generator]:
    """The generators of a source and of the sources it wraps, by class name."""
    found = {}
    while source is not None:
        if hasattr(source, "drawing"):
            found[type(source).__name__] = source.drawing.generator
        source = getattr(source, "source", None)
    return found
