"""What the kernels believe of the processor: from Numba's target, not from the machine alone."""

import os
import subprocess
import sys

import pytest

from fastnc.kernels.cpu import processor

# What plays which width: a target's features, and what the kernels then find.
TARGETS = {
    16: ("x86-64", "+sse2", (16, 16)),
    32: ("haswell", "+avx,+avx2,+fma", (32, 16)),
    64: ("skylake-avx512", "+avx,+avx2,+fma,+avx512f,+avx512dq,+avx512vl,+avx512bw", (64, 32)),
}


@pytest.mark.parametrize(
    ("features", "machine", "found"),
    [
        ({"avx512f", "avx2", "avx", "sse2"}, "x86_64", (64, 32)),
        ({"avx2", "avx", "sse2"}, "x86_64", (32, 16)),
        ({"avx", "sse2"}, "AMD64", (32, 16)),
        ({"sse2"}, "x86_64", (16, 16)),
        ({"neon"}, "aarch64", (16, 32)),
        (set(), "arm64", (16, 32)),
    ],
)
def test_width_and_number_of_registers(features, machine, found):
    assert processor.registers(features, machine) == found


@pytest.mark.parametrize("width", TARGETS)
def test_numbas_target_decides(width):
    name, features, found = TARGETS[width]
    code = "from fastnc.kernels.cpu import processor as p; print(p.VECTOR_BYTES, p.N_REGISTERS)"
    target = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | target, capture_output=True, text=True
    )
    width_and_registers = tuple(map(int, done.stdout.split()))
    assert width_and_registers == (found if os.uname().machine == "x86_64" else (found[0], 32))


def test_a_target_without_features_is_the_narrowest(monkeypatch):
    monkeypatch.setattr(processor.config, "CPU_NAME", "generic")
    monkeypatch.setattr(processor.config, "CPU_FEATURES", None)
    assert processor._features() == set()


def test_caches_that_nobody_tells_of_are_small(monkeypatch):
    assert processor.L1_BYTES >= 16 << 10 and processor.L2_BYTES >= 128 << 10
    monkeypatch.setattr(processor.Path, "glob", lambda *_: [processor.Path("/nowhere")])
    assert processor._from_sysfs(1) == 0


# Each product, alone and in blocks, against the sums written out; and the objective of two shapes,
# by tiles and by dot products, in both dtypes. One part: what divides parts knows of no width.
KERNELS = """
import numpy as np
from fastnc import reference
from fastnc.kernels.cpu import cross_entropy
from kernel_problems import PLANS, evaluate, problem
for dtype in ("float32", "float64"):
    for name in ("tiles, blocks", "dots"):
        one_part = PLANS[name]._replace(parts=1)
        cross_entropy.plan = lambda *_: one_part
        for shape in ((13, 21, 70), (7, 64, 40)):
            W, H, y = problem(*shape, dtype)
            wide, found = (W.astype(float), H.astype(float), y), evaluate(W, H, y)
            wanted = reference.loss_and_grads(*wide)
            for name, wanted in {
                "loss": wanted[:1],
                "loss_and_grads": wanted,
                "log_loss_and_grads": reference.log_loss_and_grads(*wide),
                "gradient_step": reference.gradient_step(*wide, 0.5),
            }.items():
                for got, want in zip(found[name], wanted, strict=True):
                    # As test_cross_entropy_cpu.compare.
                    bound = 100 * np.finfo(dtype).eps * max(1.0, np.abs(want).max())
                    assert np.abs(got - want).max() <= bound, name
print("done")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="plays x86 processors")
@pytest.mark.parametrize("width", TARGETS)
def test_kernels_of_every_width_that_this_processor_can_play(width):
    if width >= processor.VECTOR_BYTES:
        pytest.skip("wider than this processor's, or its own, with which all other tests run")
    name, features, _ = TARGETS[width]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "done\n", done.stderr
