"""asv: every row of Table 1 to its optimum, and weight decay at K = 100, n = 100, d = 128."""

from __future__ import annotations

import fastnc
from fastnc.paper.table1 import rows

SIZES = 10, 20, 16
ROWS = (
    "sphere",
    "separation",
    "norm-constrained",
    "unit rows",
    "cross-entropy + decay",
    "cross-entropy + decay, unequal",
    "ReLU features, unequal",
    "squared error + decay, bias",
)


class Solve:
    """`solve` on the rows of the table; `track_evaluations` is the work that it took."""

    params = (ROWS,)
    param_names = ("row",)
    timeout = 120

    def setup(self, row):
        self.model = rows(*SIZES)[row]
        # A benchmark of a wrong result is worth nothing.
        assert fastnc.solve(self.model).gap < 1e-8

    def time_solve(self, row):
        fastnc.solve(self.model)

    def track_evaluations(self, row):
        return fastnc.solve(self.model).evaluations


class Large:
    """A million unknowns: at most 30 s on two cores to a relative gap of 1e-8."""

    timeout = 300
    number = 1
    repeat = 1
    warmup_time = 0

    def setup(self):
        self.model = fastnc.models.weight_decay(100, 100, 128, 5e-4, 5e-4)
        fastnc.solve(fastnc.models.weight_decay(100, 2, 128, 5e-4, 5e-4), starts=1)

    def time_weight_decay(self):
        assert fastnc.solve(self.model).gap < 1e-8


class Program:
    """The convex program behind `imbalanced`, to its duality gap."""

    params = ([10, 100],)
    param_names = ("n_classes",)
    timeout = 120
    number = 1

    def setup(self, n_classes):
        half = n_classes // 2
        self.model = fastnc.models.imbalanced((100,) * half + (10,) * half, n_classes, 5e-4, 5e-4)

    def time_optimum(self, n_classes):
        assert self.model.optimum().certificate < 1e-9
