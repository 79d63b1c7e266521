"""The stages of bench/gpu_report.py at toy sizes: each runs, and says what it should of itself."""

import sys
from pathlib import Path

import pytest
import torch
from interpreted import DEVICE, play_a_gpu

BENCH = Path(__file__).parent.parent.parent / "bench"


@pytest.fixture
def stages(monkeypatch):
    """The module, which plays a GPU for as long as a test runs."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_stages

    def prepared(dry):
        play_a_gpu(monkeypatch.setattr)
        return "cpu"

    monkeypatch.setattr(gpu_stages, "prepared", prepared)
    yield gpu_stages
    for name in [name for name in sys.modules if name.startswith("gpu_") or name == "gpu"]:
        if name != "gpu_problems":
            del sys.modules[name]


pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="toy sizes are the interpreter's")


@pytest.mark.parametrize("name", ["warm", "bits", "errors", "table", "descend", "tune"])
def test_a_stage_ends_and_nothing_is_wrong(stages, name):
    rows = list(stages.STAGES[name](True))
    assert rows and all(len(row) == 6 for row in rows)
    assert {row[-1] for row in rows} <= {"yes", ""}
    if name in ("bits", "errors"):
        assert all(row[-1] == "yes" for row in rows)
    if name == "errors":
        names = ("one pass", "logits in fp16", "descriptors", "descriptors, carried")
        named = [", " + name for name in names]
        rows_of = {
            f"{what}{of}" for what in ("dH by row", "dW by row", "loss") for of in ["", *named]
        }
        # The one pass keeps its residuals to itself.
        assert {row[1] for row in rows} == rows_of | {f"r by row{of}" for of in ["", *named[1:]]}


def test_an_error_of_one_small_row_shows(stages):
    import gpu_errors

    exact = torch.tensor([[1.0, -1.0], [1e-20, 3e-20], [0.0, 0.0]])
    near = exact.clone()
    assert gpu_errors.by_row(near, exact) == 0.0
    near[1, 0] *= 1.01
    assert gpu_errors.by_row(near, exact) == pytest.approx(0.01 / 3, rel=1e-5)
    near[2, 1] = 1e-30
    assert gpu_errors.by_row(near, exact) == float("inf")


def test_the_whole_table_at_toy_sizes(stages):
    import gpu

    lines = []
    assert gpu.measure_all(True, lines) == 0
    ours = [line for line in lines if line[1].startswith("fastnc")]
    # Lines of ours that compare nothing with float64 are whole epochs alone.
    assert {line[0] for line in ours if line[7] != line[7]} <= {"2 epochs, K=3"}
    first = {line[0].split(",")[0].split(" ")[0] for line in lines}
    assert {"grads", "step", "compensated", "Hessian", "terminal", "class", "second"} <= first
    assert len(ours) >= 15 and all(line[2] > 0.0 for line in ours)
