"""Sources of gradients: all samples, minibatches, a model of Table 1, several ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import row_major
from fastnc.dynamics.randomness import BATCHES, LABELS, NOISE, Draws, Stream
from fastnc.models.layer_peeled import LayerPeeled
from fastnc.models.logit_losses import LogitLoss
from fastnc.theory.residuals import Residuals

Array = NDArray[Any]
Arrays = tuple[Array, ...]
Rows = NDArray[np.int64] | None


class Found(NamedTuple):
    """A loss and its gradients, or those of its logarithm.

    `residual` is the largest entry of dlog L/dZ, NaN unless it was requested.
    """

    log_loss: float
    value: float
    gradients: Arrays
    residual: float = math.nan


class Source(Protocol):
    """A source of gradients, an epoch at a time."""

    has_log: bool
    """Whether it has gradients of log L."""

    def epoch(self) -> Iterator[Rows]:
        """The samples of each step of an epoch; None stands for all."""

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """The loss of these samples and its gradients."""


class FullBatch:
    """The mean loss (4) of all samples, or another loss of their logits."""

    def __init__(self, y: NDArray[np.int64], loss: LogitLoss | None = None) -> None:
        self.y, self.loss = row_major(y), loss
        self.has_log = loss is None or loss.has_log

    def epoch(self) -> Iterator[Rows]:
        """One step."""
        yield None

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """By the compiled kernels; by NumPy for other losses, and where `residual` is set."""
        return self.of(factors[0], factors[1], self.y, of_log_loss, residual)

    def of(self, W: Array, H: Array, y: Array, of_log_loss: bool, residual: bool) -> Found:
        """The mean loss of some samples and its gradients."""
        if self.loss is None:
            return of_samples(W, H, y, of_log_loss, residual)
        value, grads = self.loss.value_and_grads(W, H, y, of_log_loss)
        return Found(value.log_value, value.value, (grads.W, grads.H))


def of_samples(W: Array, H: Array, y: Array, of_log_loss: bool, residual: bool) -> Found:
    """The mean loss (4) of samples and its gradients."""
    from fastnc.kernels.cpu.cross_entropy import log_loss_and_grads, loss_and_grads

    loss = np.empty(1)
    if residual:
        at = Residuals(W.astype(np.float64, copy=False), H.astype(np.float64, copy=False), y)
        grads = (at.residuals.T @ at.H, at.residuals @ at.W)
        loss[0] = at.log_loss
        largest = float(np.abs(at.residuals).max())
        gradients = tuple(g.astype(W.dtype, copy=False) for g in grads)
        return _of_log(float(loss[0]), len(y), gradients, largest)
    grad_W, grad_H = np.empty_like(W), np.empty_like(H)
    if of_log_loss:
        log_loss_and_grads(W, H, y, loss, grad_W, grad_H)
        return _of_log(float(loss[0]), len(y), (grad_W, grad_H), math.nan)
    loss_and_grads(W, H, y, 1.0 / len(y), loss, grad_W, grad_H)
    return _of_value(float(loss[0]), (grad_W, grad_H))


def _of_value(value: float, gradients: Arrays) -> Found:
    return Found(math.log(value) if value > 0.0 else -math.inf, value, gradients)


def _of_log(log_sum: float, n: int, gradients: Arrays, residual: float) -> Found:
    mean = log_sum - math.log(n)
    return Found(mean, math.exp(mean) if mean < 709.0 else math.inf, gradients, residual)


class MiniBatch(FullBatch):
    """The mean loss of some samples a step; those not drawn have a gradient of 0.

    Without replacement an epoch takes each sample once, in batches of nearly equal size; with it,
    each of as many steps draws `size` samples.
    """

    def __init__(
        self, y: NDArray[np.int64], size: int, replacement: bool, seed: int,
        loss: LogitLoss | None = None,
    ) -> None:  # fmt: skip
        super().__init__(y, loss)
        self.size, self.replacement = size, replacement
        self.stream = Draws(seed, BATCHES)

    def epoch(self) -> Iterator[Rows]:
        """The samples of each step."""
        n = len(self.y)
        steps = -(-n // self.size)
        if self.replacement:
            for _ in range(steps):
                yield self.stream.numbers(n, self.size)
            return
        order = self.stream.order(n)
        for step in range(steps):
            yield order[n * step // steps : n * (step + 1) // steps]

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """The rows of H gathered, and their gradients put in their places."""
        if rows is None:
            return super().at(factors, rows, of_log_loss, residual)
        W, H = factors
        found = self.of(W, H[rows], self.y[rows], of_log_loss, residual)
        grad_H = np.zeros_like(H)
        # A sample that was drawn twice counts twice.
        if self.replacement:
            np.add.at(grad_H, rows, found.gradients[1])
        else:
            grad_H[rows] = found.gradients[1]
        return found._replace(gradients=(found.gradients[0], grad_H))


class LabelNoise:
    """A source whose labels each step replaces, with probability `share`, by a wrong class.

    That class is drawn uniformly from the K - 1 wrong ones. All gradients of a step have one draw.
    """

    def __init__(self, source: FullBatch, n_classes: int, share: float, seed: int) -> None:
        self.source, self.n_classes, self.share = source, n_classes, share
        self.noise = f"`label_noise`={share:g}"
        self.has_log, self.y = source.has_log, source.y
        self.stream = Stream(seed, LABELS)

    def epoch(self) -> Iterator[Rows]:
        """As the source, with labels drawn anew before each step."""
        for rows in self.source.epoch():
            flipped = self.stream.draw.random(len(self.y)) < self.share
            shift = self.stream.draw.integers(1, self.n_classes, len(self.y))
            self.source.y = np.where(flipped, (self.y + shift) % self.n_classes, self.y)
            yield rows

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """With the labels of this step."""
        return self.source.at(factors, rows, of_log_loss, residual)


class GaussianNoise:
    """A source with `size` times a standard normal number added to each entry of its gradients.

    Each step draws for W first, then for H, then for a bias, in float64. All gradients of a step
    have one draw.
    """

    has_log = False

    def __init__(self, source: Source, size: float, seed: int) -> None:
        self.source, self.size = source, size
        self.noise = f"`noise`={size:g}"
        self.stream = Stream(seed, NOISE)
        self.drawn: Arrays = ()

    def epoch(self) -> Iterator[Rows]:
        """As the source, with noise to be drawn anew in each step."""
        for rows in self.source.epoch():
            self.drawn = ()
            yield rows

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """The source's gradients and this step's noise."""
        found = self.source.at(factors, rows, of_log_loss, residual)
        if not self.drawn:
            draw = self.stream.draw.standard_normal
            self.drawn = tuple(self.size * draw(g.shape) for g in found.gradients)
        noisy = tuple(
            (g + noise).astype(g.dtype, copy=False)
            for g, noise in zip(found.gradients, self.drawn, strict=True)
        )
        return found._replace(gradients=noisy)


class Penalised:
    """The objective of a model of Table 1; with a constraint the Riemannian gradient."""

    has_log = False

    def __init__(self, model: Any) -> None:
        self.model = model

    def epoch(self) -> Iterator[Rows]:
        """One step."""
        yield None

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """The gradients with respect to W, H and the bias, if there is one."""
        W, H, *rest = factors
        there = W, H
        if type(self.model).pullback is not LayerPeeled.pullback:
            # A rule may look beside the constraint, as `SharpnessAware` does.
            there = self.model.retract(W, H)
        g = self.model.value_and_grads(*there, rest[0] if rest else None)
        gradients = self.model.pullback(W, H, g.W, g.H)
        return _of_value(float(g.value), (*gradients, g.bias) if rest else gradients)


class Layered(Penalised):
    """The objective of the deep linear model; factors are W, H and the layers between."""

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """The gradients with respect to W_M, H_1, W_1, ..., W_(M-1)."""
        value, grads = self.model.value_and_gradients((factors[1], *factors[2:], factors[0]))
        return _of_value(value, (grads[-1], *grads[:-1]))


class OverRanks:
    """The mean loss of the samples of all ranks, each of which has some rows of H and all of W."""

    has_log = False

    def __init__(self, y: NDArray[np.int64], n_samples: int, workers: Any) -> None:
        self.y, self.n_samples, self.workers = row_major(y), n_samples, workers

    def epoch(self) -> Iterator[Rows]:
        """One step."""
        yield None

    def at(self, factors: Arrays, rows: Rows, of_log_loss: bool, residual: bool) -> Found:
        """Only dL/dW and the loss, K d + 1 numbers, are exchanged."""
        import torch

        from fastnc.kernels.cpu.cross_entropy import loss_and_grads

        W, H = factors
        loss, grad_W, grad_H = np.empty(1), np.empty_like(W), np.empty_like(H)
        loss_and_grads(W, H, self.y, 1.0 / self.n_samples, loss, grad_W, grad_H)
        shared = np.empty(W.size + 1)
        shared[:-1], shared[-1] = grad_W.ravel(), loss[0]
        self.workers.sum(torch.from_numpy(shared))
        value = float(shared[-1])
        if not math.isfinite(value):
            # W must not stay finite here where another rank's rows are not.
            shared.fill(math.nan)
        grad_W = shared[:-1].reshape(W.shape).astype(W.dtype)
        log_value = math.log(value) if value > 0.0 else -math.inf
        return Found(log_value, value, (grad_W, grad_H))


def streams(source: Any) -> dict[str, Stream | Draws]:
    """The generators of a source and of the sources it wraps, by class name."""
    found: dict[str, Stream | Draws] = {}
    while source is not None:
        if hasattr(source, "stream"):
            found[type(source).__name__] = source.stream
        source = getattr(source, "source", None)
    return found
