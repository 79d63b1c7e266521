"""bench/compare.py and tables.py at toy sizes: every operation is checked, recorded, tabulated."""

import importlib
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent.parent / "bench"
OPERATIONS = ("trajectory", "step", "grads", "torch loss")


@pytest.fixture
def bench(monkeypatch):
    """The scripts, and floors that cost nothing: a speed is no matter of a test."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCH)
    names = ("compare", "tables", "machine", "roofline", "suite.cases")
    modules = {name.split(".")[-1]: importlib.import_module(name) for name in names}
    monkeypatch.setattr(
        modules["roofline"], "floors", _Floors(modules["roofline"].Floors(1e9, 2e9, 1e9, 1e8))
    )
    return modules


class _Floors:
    """Stands for the cached function `floors`."""

    def __init__(self, rates):
        self.rates = rates

    def __call__(self, dtype, clock):
        return self.rates

    def cache_clear(self):
        pass


def toy(bench, operation):
    # The paper's problem, for which other tests have compiled most kernels already.
    return bench["cases"].Case("toy", 5, 20, 50, operation, (0.5, 0.6), 2.0)


@pytest.mark.parametrize(
    ("operation", "dtype"), [*((name, "float32") for name in OPERATIONS), ("trajectory", "float64")]
)
def test_every_peer_of_every_operation_agrees_with_the_reference(bench, operation, dtype):
    compare = bench["compare"]
    case = toy(bench, operation)
    # The compiler takes long, and JAX holds its width for the whole process.
    names = [n for n in compare.peers_of(case) if n != "torch.compile" and "JAX" not in n]
    _, rows, absent = compare.measure(case, names, dtype, 2, time.perf_counter)
    assert absent == [] and {row[0] for row in rows} == set(names)
    assert all(row[1] > 0.0 for row in rows)


def test_jax_descends_as_the_reference(bench):
    pytest.importorskip("jax")
    bench["compare"].agrees("JAX fori_loop", toy(bench, "trajectory"), "float32")


def test_a_peer_of_something_else_is_refused(bench, monkeypatch):
    compare = bench["compare"]
    numpy = compare.TRAJECTORY_PEERS["NumPy"]
    monkeypatch.setitem(compare.TRAJECTORY_PEERS, "NumPy", lambda W, H, y, n: numpy(W, H, y, n + 1))
    _, rows, absent = compare.measure(
        toy(bench, "trajectory"), ["NumPy"], "float64", 1, time.perf_counter
    )
    assert rows == [] and "NumPy: ValueError" in absent[0] and "off by" in absent[0]


def test_what_is_recorded_makes_a_table(bench, tmp_path, monkeypatch, capsys):
    compare, tables = bench["compare"], bench["tables"]
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setitem(compare.REGIMES, "toy", toy(bench, "trajectory"))
    command = ["compare.py", "--regime", "toy", "--peers", "fastnc", "NumPy", "--quick", "--record"]
    monkeypatch.setattr(sys, "argv", command)
    compare.main()
    printed = capsys.readouterr().out
    for fact in ("processor: ", "vector_bits: ", "blas: ", "date: "):
        assert fact in printed
    (path,) = tmp_path.glob("*.csv")
    rows = tables.rows_of(path)
    assert {row["peer"] for row in rows} == {"fastnc", "NumPy"}
    assert rows[0]["command"] == "python bench/compare.py " + " ".join(command[1:])
    assert rows[0]["processor"] and rows[0]["date"] and "openblas" in rows[0]["blas"]
    lines = tables.table(rows).splitlines()
    assert lines[2].startswith("| case (K, d, N) | dtype | fastnc |")
    assert lines[4].startswith("| trajectory 5, 20, 50 | float32 |") and "| NumPy |" in lines[4]


def test_the_last_measurement_of_a_regime_counts(bench):
    facts = dict.fromkeys(("processor", "vector_bits", "threads", "blas", "date"), "x")
    facts |= {"commit": "c", "command": "d", "regime": "toy", "dtype": "float32"}
    facts |= {"operation": "step", "K": "3", "d": "4", "N": "5", "of floor": "0.5"}
    rows = [
        facts | {"peer": peer, "ms": ms}
        for peer, ms in (("fastnc", "9"), ("A", "30"), ("B", "20"), ("fastnc", "0.01"))
    ]
    line = bench["tables"].table(rows).splitlines()[-1]
    assert line == "| step 3, 4, 5 | float32 | 10 us | 0.50 | B | 2000.00 |"
    # Of two files the one of wider vectors is first, and what the other has not is left out.
    wide = [row | {"vector_bits": "512"} for row in rows]
    played = [row | {"vector_bits": "256 (played: x)"} for row in rows]
    more = [row | {"regime": "other"} for row in played]
    lines = bench["tables"].beside([played + more, wide], "float32").splitlines()
    assert lines[3].startswith("| K, d, N | AVX-512 | fastest peer | of the floor | AVX2, played |")
    assert lines[5:] == ["| step 3, 4, 5" + 2 * " | **10 us** | 2000.00 x (B) | 0.50" + " |"]


def test_the_readme_has_the_recorded_table(bench):
    """Its lines were written by hand, in another order and under other heads."""
    tables = bench["tables"]
    files = [tables.rows_of(path) for path in sorted(tables.RESULTS.glob("*.csv"))]
    made = tables.beside(files, "float32").split("\n\n")[1]
    assert made in (tables.RESULTS.parents[1] / "README.md").read_text()


def test_a_blas_that_is_told_its_processor_is_warned_of(bench, monkeypatch):
    for name in bench["machine"].ORDERS:
        monkeypatch.delenv(name, raising=False)
    assert bench["machine"].warnings() == []
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    (sentence,) = bench["machine"].warnings()
    assert sentence.startswith("OPENBLAS_CORETYPE=Haswell is set: a BLAS runs that processor's")


def test_every_blas_is_a_floor(bench):
    import numpy as np

    calls = bench["roofline"].products(np.random.default_rng(0), 8, "float64", 1)
    assert set(calls) == {"NumPy", "SciPy", "torch"}
    for call in calls.values():
        call()
