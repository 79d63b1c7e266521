"""Rows of H over two devices beside one process; without GPUs two CPU ranks play them."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted import DEVICE

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch was built without gloo", allow_module_level=True)
if DEVICE == "cuda" and torch.cuda.device_count() < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)

import device_ranks

import fastnc
from fastnc.dynamics.steppers import compiled

SCRIPT = Path(device_ranks.__file__)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks left that went on where a kill had ended two others."""
    folder = tmp_path_factory.mktemp("ranks")
    # Numba's OpenMP layer ends a process that forks; this layer allows it.
    few = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
    started = subprocess.Popen(
        [sys.executable, SCRIPT, folder], env=os.environ | few, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        told = started.communicate(timeout=600)[0]
    finally:
        # A rank that waits for another waits for ever.
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, told
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize("name", device_ranks.RUNS | device_ranks.WIDE)
def test_two_devices_go_where_the_cpu_goes(ranks, name, monkeypatch):
    # Rules by the NumPy loop: nothing is compiled for it.
    monkeypatch.setattr(compiled, "serves", lambda model, rule: False)
    model, told = device_ranks.options(name)
    run = fastnc.descend(model, **told)
    H = np.concatenate([found[name + " H"].numpy() for found in ranks])
    assert [len(found[name + " H"]) for found in ranks] == [
        model.n_samples // 2, model.n_samples - model.n_samples // 2
    ]  # fmt: skip
    assert np.array_equal(np.concatenate([found[name + " y"].numpy() for found in ranks]), model.y)
    # A few epochs of rounding in float64. In float32 factors of a product keep 16 bits; Adam's
    # first steps divide a gradient by itself, whatever its rounding.
    single = run.W.dtype == np.float32
    most = (3e-3 if "adam" in name else 1e-4) if single else 1e-10
    for found in ranks:
        np.testing.assert_allclose(found[name + " W"].numpy(), run.W, rtol=0, atol=most)
        assert list(found[name]) == list(run.columns)
        for column in run.columns:
            np.testing.assert_allclose(
                found[name][column], run[column], rtol=10 * most, atol=10 * most
            )
    np.testing.assert_allclose(H, run.H, rtol=0, atol=most)
    assert torch.equal(ranks[0][name + " W"], ranks[1][name + " W"])
    # As text, in which a NaN is a NaN.
    assert repr(ranks[0][name]) == repr(ranks[1][name])


def test_runs_that_were_killed_go_on_with_the_same_bits(ranks):
    for found in ranks:
        assert 0 < found["resumed at"] < device_ranks.EPOCHS
        assert torch.equal(found["resumed W"], found["few float32 W"])
        assert torch.equal(found["resumed H"], found["few float32 H"])


@pytest.mark.parametrize("name", ["plain", "rule"])
def test_graphs_of_each_rank_change_no_bit(ranks, name):
    for found in ranks:
        (W, replays), (other, none) = found[f"{name} at once"], found[f"{name} one by one"]
        assert torch.equal(W, other) and none == 0
        assert DEVICE == "cuda" or replays > 0
    assert torch.equal(ranks[0][f"{name} at once"][0], ranks[1][f"{name} at once"][0])


def test_divergence_on_any_device_is_told_on_each(ranks):
    for found in ranks:
        assert "W or H is not finite" in found["diverged"]


@pytest.mark.skipif(DEVICE == "cuda", reason="there the ranks have NCCL")
def test_ranks_without_nccl_are_refused(ranks):
    for found in ranks:
        assert "must have a process group of NCCL; got 'gloo'. Call `torch.dist" in found["refused"]
