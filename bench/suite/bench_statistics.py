"""asv: both sweeps over features, their pieces, and small batches."""

from __future__ import annotations

import numpy as np
from roofline import best, floors

import fastnc

SIZES = [(60_000, 512, 10), (5_000, 4096, 10), (5_000, 512, 1000)]


def features(sizes):
    N, d, K = sizes
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(N) % K)
    means = rng.standard_normal((K, d), dtype=np.float32)
    H = means[y] + 0.3 * rng.standard_normal((N, d), dtype=np.float32)
    return H, y, means


class Sweeps:
    """`collapse_metrics` without and with a classifier, and the first sweep alone."""

    params = (SIZES,)
    param_names = ("N_d_K",)
    timeout = 120

    def setup(self, sizes):
        self.H, self.y, self.W = features(sizes)
        told = fastnc.collapse_metrics(self.H, self.y, self.W)
        # Spread 0.3 about means of spread 1: the quotient of the traces is near 0.09, a class of
        # five samples making its mean noisier.
        assert 0.05 < told.nc1_quotient < 0.12 and told.nc4_agreement > 0.99

    def time_metrics(self, sizes):
        fastnc.collapse_metrics(self.H, self.y)

    def time_metrics_with_classifier(self, sizes):
        fastnc.collapse_metrics(self.H, self.y, self.W)

    def time_statistics(self, sizes):
        fastnc.ClassStatistics(sizes[2], sizes[1]).update(self.H, self.y)


class Traffic:
    """What the first sweep reads a second."""

    def setup(self):
        self.H, self.y, _ = features(SIZES[0])
        self.seconds = best(lambda: fastnc.ClassStatistics(10, 512).update(self.H, self.y))

    def track_rate(self):
        return self.H.nbytes / self.seconds / 1e9

    track_rate.unit = "GB/s"

    def track_times_a_copy(self):
        """Of as many bytes: half of what a copy moves is written, and here all is read."""
        return self.seconds * floors("float32").bandwidth / self.H.nbytes

    track_times_a_copy.unit = "times a copy"


class Batches:
    """The first sweep in batches of an evaluation loop."""

    params = ([16, 128, 1024],)
    param_names = ("batch",)

    def setup(self, batch):
        self.H, self.y, _ = features((8192, 512, 10))
        self.time_update(batch)

    def time_update(self, batch):
        s = fastnc.ClassStatistics(10, 512)
        for lo in range(0, len(self.H), batch):
            s.update(self.H[lo : lo + batch], self.y[lo : lo + batch])
        assert s.n_samples == len(self.H)
