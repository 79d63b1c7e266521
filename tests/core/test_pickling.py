"""What is sent to workers by value: functions of a notebook that use the package."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastnc

# Functions of `__main__` are pickled by value, with the globals that they use.
NOTEBOOK = """
import sys
import numpy as np
import fastnc

def measure(seed):
    W, H = fastnc.ULPM(3, 4, 5).init(seed=seed)
    y = fastnc.ULPM(3, 4, 5).y
    return fastnc.margin_ratio(W, H, y), fastnc.models.__name__, fastnc.reference.loss(W, H, y)

if __name__ == "__main__":
    own = [measure(seed) for seed in range(2)]
"""
JOBLIB = """
    from joblib import Parallel, delayed
    assert Parallel(n_jobs=2)(delayed(measure)(seed) for seed in range(2)) == own
"""
CLOUDPICKLE = """
    import subprocess, cloudpickle
    worker = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(1))"
    sent = subprocess.run([sys.executable, "-c", worker], input=cloudpickle.dumps(measure),
                          stdout=subprocess.PIPE, check=True)
    assert sent.stdout.decode().strip() == repr(own[1])
    statistics = fastnc.ClassStatistics(n_classes=3, dim=5)
    for whole in (fastnc, fastnc.models, fastnc.ULPM(3, 4, 5), statistics, fastnc.loss):
        cloudpickle.loads(cloudpickle.dumps(whole))
"""


@pytest.mark.parametrize(("library", "code"), [("joblib", JOBLIB), ("cloudpickle", CLOUDPICKLE)])
def test_functions_that_use_the_package(tmp_path, library, code):
    pytest.importorskip(library)
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK + code)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", [fastnc.Diverged, fastnc.Interrupted])
def test_errors_that_carry_a_run(kind):
    """A pool waits for ever for the error of a worker that cannot be made again."""
    run = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=5)
    back = pickle.loads(pickle.dumps(kind("why it ended.", run)))
    assert type(back) is kind and str(back) == "why it ended."
    assert np.array_equal(back.run.W, run.W) and back.run.columns == run.columns
