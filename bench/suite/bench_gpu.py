"""asv: the CUDA kernels as `gpu.py` checks and measures them; skipped where there is no GPU."""

from __future__ import annotations

CASES = (
    "grads, few classes",
    "grads, hundred classes",
    "grads, thousand classes",
    "Hessian, hundred classes",
    "1000 epochs of 1024 problems",
    "class moments",
    "second pass",
)


class Kernels:
    """The exact tier in float32; problems at once in float64."""

    params = (list(CASES),)
    param_names = ("case",)
    timeout = 60

    def setup_cache(self):
        import torch

        if not torch.cuda.is_available():
            return {}
        from gpu import measure, measure_floors
        from gpu_rows import everything

        floors, found = measure_floors("cuda", dry=False), {}
        for row in everything("cuda", dry=False):
            if row.case in CASES and row.case not in found and row.who.startswith("fastnc"):
                line, error = measure(row, floors, dry=False)
                # A benchmark of a wrong result is worth nothing.
                assert error <= row.tolerance, (row.case, error)
                found[row.case] = line[2], line[6], error
        assert found.keys() == set(CASES)
        return found

    setup_cache.timeout = 600

    def setup(self, found, case):
        if case not in found:
            raise NotImplementedError("torch sees no CUDA device")
        self.milliseconds, self.fraction, self.error = found[case]

    def track_milliseconds(self, found, case):
        return self.milliseconds

    track_milliseconds.unit = "ms"

    def track_times_the_floor(self, found, case):
        return 1 / self.fraction

    track_times_the_floor.unit = "times the floor"

    def track_error(self, found, case):
        return self.error

    track_error.unit = "of the largest entry"
