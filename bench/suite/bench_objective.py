"""The objective on the CPU: time at three sizes, rates and shares of the floor of every regime."""

from __future__ import annotations

import numpy as np
from roofline import best, floors_around

import fastnc

from .cases import OBJECTIVES, SCALING, Case

DTYPE = "float32"
# What takes a second a call is left to compare.py.
REGIMES = {case.name: case for case in OBJECTIVES if case.flops < 2e10}


def check(W, H, y) -> None:
    """A benchmark of a wrong result is worth nothing: a few samples against the reference."""
    W, H, y = W[:64], H[:200], y[:200] % min(64, len(W))
    for name in ("loss_and_grads", "log_loss_and_grads"):
        found = getattr(fastnc, name)(W, H, y)
        wanted = getattr(fastnc, name)(W, H, y, impl="reference")
        for got, want in zip(found, wanted, strict=True):
            # float32: some hundred roundings of the largest entry.
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name


def prepare(case: Case):
    """The call of a regime, compiled and checked."""
    W, H, y = case.arrays(DTYPE)
    check(W, H, y)
    if case.operation == "step":
        return lambda: fastnc.gradient_step(W, H, y, 1e-3)
    return lambda: fastnc.loss_and_grads(W, H, y)


class Regimes:
    """Rates of the regimes of `cases`, and floors measured around them."""

    params = tuple(REGIMES)
    param_names = ("regime",)
    timeout = 300

    def setup_cache(self):
        return floors_around(
            lambda: {name: best(prepare(case), rounds=5) for name, case in REGIMES.items()}, DTYPE
        )

    setup_cache.timeout = 300

    def track_rate(self, found, regime):
        return REGIMES[regime].flops / found[0][regime] / 1e9

    track_rate.unit = "GFLOP/s"

    def track_times_the_floor(self, found, regime):
        times, rates = found
        return times[regime] / rates.seconds(REGIMES[regime], np.dtype(DTYPE).itemsize)

    track_times_the_floor.unit = "times the floor"


class Sizes:
    """Seconds against N, for ten classes and 64 features."""

    params = (list(SCALING), ["loss", "loss_and_grads", "log_loss_and_grads", "gradient_step"])
    param_names = ("n_samples", "operation")

    def setup(self, n_samples, operation):
        W, H, y = Case("", 10, 64, n_samples, operation, (0, 0), 0).arrays(DTYPE)
        check(W, H, y)
        more = (1e-3,) if operation == "gradient_step" else ()
        self.call = lambda: getattr(fastnc, operation)(W, H, y, *more)
        self.call()

    def time_operation(self, n_samples, operation):
        self.call()


class HessianProduct:
    """Its cost in evaluations of the gradients: 2 is what the operations say."""

    params = ("hundred_classes",)
    param_names = ("regime",)

    def setup(self, regime):
        case = REGIMES[regime]
        self.W, self.H, self.y = case.arrays(DTYPE)
        check(self.W, self.H, self.y)

    def track_gradients(self, regime):
        W, H, y = self.W, self.H, self.y
        product = best(lambda: fastnc.hessian_vector_product(W, H, y, W, H), rounds=3)
        return product / best(lambda: fastnc.loss_and_grads(W, H, y), rounds=3)

    track_gradients.unit = "evaluations of the gradients"


class Memory:
    """The peak of a step at two sizes: H is all that grows."""

    params = (100_000, 400_000)
    param_names = ("n_samples",)

    def setup(self, n_samples):
        self.arrays = Case("", 10, 64, n_samples, "step", (0, 0), 0).arrays(DTYPE)

    def peakmem_gradient_step(self, n_samples):
        fastnc.gradient_step(*self.arrays, 1e-3)
