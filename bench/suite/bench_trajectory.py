"""The trajectory kernel in epochs a second, and the 1e5-epoch job from model to snapshots."""

from __future__ import annotations

import itertools

import numpy as np
from roofline import best

import fastnc
from fastnc.kernels.cpu.trajectory import descend

from .cases import CASES

# Long enough to time, short enough that the descent is still in its ordinary range.
EPOCHS = {"tiny": 20_000, "middle": 200, "middle_wide": 20}


def run(start, epochs):
    """W, H, y after a number of epochs."""
    W, H, y = (x.copy() for x in start)
    # float32 is compensated, as in `fastnc.descend`.
    low = [np.zeros_like(x) if W.dtype == np.float32 else np.zeros((0, 0)) for x in (W, H)]
    descend(W, H, *low, y, 1.0 / len(y), 1.0, epochs)
    return W, H, y


class Epochs:
    """Epochs of the compiled loop alone."""

    params = (list(EPOCHS), ["float32", "float64"])
    param_names = ("case", "dtype")

    def setup_cache(self):
        found = {}
        for case, dtype in itertools.product(*self.params):
            start = CASES[case].arrays(dtype)
            # A benchmark of a wrong result is worth nothing: what is timed must descend.
            before, after = (fastnc.loss(*run(start, n)) for n in (1, EPOCHS[case]))
            assert after < before, (case, dtype)
            seconds = best(lambda start=start, case=case: run(start, EPOCHS[case]), rounds=5)
            found[case, dtype] = seconds / EPOCHS[case]
        return found

    setup_cache.timeout = 300

    def track_epochs_a_second(self, found, case, dtype):
        return 1 / found[case, dtype]

    track_epochs_a_second.unit = "epochs/s"

    def track_microseconds_an_epoch(self, found, case, dtype):
        """The same, smaller where it is better: what `asv continuous` judges."""
        return 1e6 * found[case, dtype]

    track_microseconds_an_epoch.unit = "us"


class Job:
    """The paper's experiment, snapshots included."""

    params = (["float32", "float64"],)
    param_names = ("dtype",)
    timeout = 300

    def setup(self, dtype):
        self.model = fastnc.ULPM(5, 10, 20)
        run = fastnc.descend(self.model, epochs=1000, dtype=dtype)
        if not run["margin"][-1] > 5.0:
            raise RuntimeError(f"the margin after 1000 epochs is {run['margin'][-1]}.")

    def time_1e5_epochs(self, dtype):
        fastnc.descend(self.model, epochs=100_000, dtype=dtype)

    def time_sweep_of_16_seeds(self, dtype):
        fastnc.sweep(self.model, epochs=20_000, seeds=range(16), dtype=dtype)
