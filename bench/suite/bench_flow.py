"""asv: gradient flow to a far horizon, the curvature on the sphere, and its Hessian products."""

from __future__ import annotations

import numpy as np

import fastnc
from fastnc.theory.curvature import SphereHessian


class Flow:
    """The paper's model from a random start; `track_steps` says whether time moved with work."""

    params = ([1000.0, 100_000.0],)
    param_names = ("log10_time",)
    timeout = 120
    number = 1

    def setup(self, log10_time):
        self.model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
        run = fastnc.flow(self.model, 2.0)
        # A benchmark of a wrong result is worth nothing.
        assert np.isfinite(run["margin"]).all() and run.about["gram_drift"] < 1e-8

    def time_flow(self, log10_time):
        fastnc.flow(self.model, log10_time)

    def track_steps(self, log10_time):
        return fastnc.flow(self.model, log10_time).about["work"]["steps"]


class Sphere:
    """A random start and the Hessian there, over the loss."""

    param_names = ("K_n_d",)
    timeout = 120

    def setup(self, sizes):
        K, n, d = sizes
        self.model = fastnc.ULPM(n_classes=K, n_per_class=n, dim=d)
        self.start = *self.model.init(0), self.model.y
        self.hessian = SphereHessian(*self.start)
        # Another seed than the model's, whose draw is the point itself: nothing tangent.
        self.x = np.random.default_rng(1).standard_normal(sum(x.size for x in self.start[:2]))
        left, right = self.hessian(self.x), self.hessian(left_of := np.roll(self.x, 1))
        # Symmetric, to rounding.
        scale = np.linalg.norm(left) * np.linalg.norm(left_of)
        assert abs(left @ left_of - right @ self.x) < 1e-12 * scale


class Product(Sphere):
    """The Hessian on the sphere times a vector."""

    params = ([(5, 10, 20), (20, 50, 64), (100, 100, 256)],)

    def time_product(self, sizes):
        self.hessian(self.x)


class Curvature(Sphere):
    """`tangent_curvature`: many products."""

    params = ([(5, 10, 20), (20, 50, 64)],)
    number = 1

    def time_curvature(self, sizes):
        fastnc.tangent_curvature(*self.start)
