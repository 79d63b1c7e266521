"""Threads of a process that has others: forked children, torch's, two that call at once.

Each case is a process of its own: threads are started once, and what they break ends it.
"""

import os
import subprocess
import sys

import pytest

PROBLEM = """
import os, sys
import numpy as np
import fastnc
rng = np.random.default_rng(0)
H, W, y = rng.standard_normal((3000, 64)), rng.standard_normal((10, 64)), np.arange(3000) % 10
def bits(x):
    values = x.values() if isinstance(x, dict) else x
    return b"".join(np.asarray(0.0 if v is None else v).tobytes() for v in values)
"""
FORK = """
def everything():
    found = bits(fastnc.collapse_metrics(H, y, W).as_dict())
    h, w = (torch.from_numpy(x).requires_grad_() for x in (H, W))
    loss = fastnc.nn.linear_cross_entropy(h, w, torch.from_numpy(y))
    loss.backward()
    return found + bits((loss.detach(), h.grad, w.grad))
before = everything()
child = os.fork()
if child == 0:
    os._exit(0 if everything() == before else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def said(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_forked_child_computes_the_same():
    """GNU OpenMP's threads are not there: Numba ended the child, and a pool waited for ever."""
    pytest.importorskip("torch")
    assert said(PROBLEM + "import torch\n" + FORK) == ["0"]


@pytest.mark.parametrize("first", ["torch", "fastnc"])
def test_threads_of_torch_stay(first):
    """To start threads, Numba sets OpenMP's number of them, which is torch's too."""
    pytest.importorskip("torch")
    torch = "import torch; torch.set_num_threads(1)\n"
    launched = "from fastnc.kernels.cpu.threads import n_threads; print(n_threads())\n"
    code = torch + launched if first == "torch" else launched + torch
    assert said(code + "print(torch.get_num_threads())") == ["2", "1"]


def test_threads_that_openmp_gives():
    """torchrun gives each rank one thread, and says so to OpenMP alone."""
    code = "from fastnc.kernels.cpu.threads import n_threads; print(n_threads())"
    del_numba = "import os; del os.environ['NUMBA_NUM_THREADS']\n"
    assert said(del_numba + code, OMP_NUM_THREADS="1") == ["1"]
    assert said(code, OMP_NUM_THREADS="1") == ["2"]
    assert said(code, NUMBA_NUM_THREADS="1") == ["1"]


def test_two_callers_of_the_workqueue():
    """The layer that is always there ends a process in which two loops run at once."""
    code = """
from concurrent.futures import ThreadPoolExecutor
def one(_):
    statistics = fastnc.ClassStatistics(n_classes=10, dim=64)
    statistics.update(H, y)
    return bits(statistics.state_dict())
with ThreadPoolExecutor(4) as pool:
    print(len(set(pool.map(one, range(200)))))
"""
    assert said(PROBLEM + code, NUMBA_THREADING_LAYER="workqueue") == ["1"]
