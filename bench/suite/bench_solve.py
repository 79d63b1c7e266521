"""asv: every row of Table 1 to its optimum, and weight decay at K = 100, n = 100, d = 128."""

from __future__ import annotations

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
    """`solve` on the rows of the table; `track_gap` says whether the optimum was reached."""

    params = (ROWS, [(4, 10, 6), (10, 20, 16)])
    param_names = ("row", "K_n_d")
    timeout = 120

    def setup(self, row, sizes):
        import fastnc
        from fastnc.table1 import rows

        self.model = rows(*sizes)[row]
        # A benchmark of a wrong result is worth nothing.
        assert fastnc.solve(self.model).gap < 1e-8

    def time_solve(self, row, sizes):
        import fastnc

        fastnc.solve(self.model)

    def track_gap(self, row, sizes):
        import fastnc

        return abs(fastnc.solve(self.model).gap)

    def track_evaluations(self, row, sizes):
        import fastnc

        return fastnc.solve(self.model).evaluations


class Large:
    """A million unknowns: at most 30 s on two cores to a relative gap of 1e-8."""

    timeout = 300
    number = 1
    repeat = 1
    warmup_time = 0

    def setup(self):
        import fastnc

        self.model = fastnc.models.weight_decay(100, 100, 128, 5e-4, 5e-4)
        fastnc.solve(fastnc.models.weight_decay(100, 2, 128, 5e-4, 5e-4), starts=1)

    def time_weight_decay(self):
        import fastnc

        assert fastnc.solve(self.model).gap < 1e-8


class Program:
    """The convex program behind `imbalanced`, to its duality gap."""

    params = ([10, 100],)
    param_names = ("n_classes",)
    timeout = 120
    number = 1

    def setup(self, n_classes):
        half = n_classes // 2
        import fastnc

        self.model = fastnc.models.imbalanced((100,) * half + (10,) * half, n_classes, 5e-4, 5e-4)

    def time_optimum(self, n_classes):
        assert self.model.optimum().certificate < 1e-9
