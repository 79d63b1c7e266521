"""The same bits on any number of BLAS threads, of every public function that calls a BLAS.

A BLAS orders its sums by how many threads it has, and the number is of the whole process: another
machine, or another thread's call that sets it for a while, changed results in their last bits.
"""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import fastnc

RNG = np.random.default_rng(0)
# So large that a BLAS shares each product.
K, N, D = 40, 400, 160
W, H, Y = RNG.standard_normal((K, D)), RNG.standard_normal((N, D)), np.arange(N) % K
SMALL = fastnc.ULPM(n_classes=K, n_per_class=N // K, dim=D)
CALLS = {
    "loss": lambda: fastnc.loss(W, H, Y),
    "loss_and_grads": lambda: fastnc.loss_and_grads(W, H, Y),
    "log_loss_and_grads": lambda: fastnc.log_loss_and_grads(W, H, Y),
    "hessian_vector_product": lambda: fastnc.hessian_vector_product(W, H, Y, W, H),
    "collapse_metrics": lambda: fastnc.collapse_metrics(H, Y, W).as_dict(),
    "statistics": lambda: statistics().state_dict(),
    "margins": lambda: fastnc.margins(W, H, Y),
    "margin_ratio": lambda: fastnc.margin_ratio(W, H, Y),
    "margin_decomposition": lambda: vars(fastnc.margin_decomposition(W, H, Y)),
    "kkt": lambda: vars(fastnc.kkt(W, H, Y)),
    # To 1e-4 it takes as many products again, each like those before.
    "tangent_curvature": lambda: fastnc.tangent_curvature(W, H, Y, tol=1e-2),
    "descend": lambda: everything(fastnc.descend(SMALL, 1.0, 30, snapshots=3)),
    "loss-scaled": lambda: everything(
        fastnc.descend(SMALL, 0.1, 30, snapshots=3, schedule="loss-scaled")
    ),
    "sweep": lambda: everything(fastnc.sweep(SMALL, 1.0, 10, seeds=range(1), snapshots=2)[0]),
    "flow": lambda: everything(fastnc.flow(SMALL, log10_time=0.1, snapshots=2)),
    "weight decay": lambda: everything(
        fastnc.descend(fastnc.models.weight_decay(K, N // K, D, 1e-3, 1e-3), 1.0, 30, snapshots=3)
    ),
}


def statistics():
    gathered = fastnc.ClassStatistics(K, D, scatter="full")
    gathered.update(H, Y)
    return gathered


def everything(run):
    return {"W": run.W, "H": run.H, **{name: run[name] for name in run.columns}}


def bits(value):
    """Of all numbers in a result, each with the name that it has there."""
    if isinstance(value, dict):
        return {(name, *path): x for name, v in value.items() for path, x in bits(v).items()}
    if isinstance(value, (tuple, list)):
        return bits(dict(enumerate(value)))
    return {(): None if value is None else np.asarray(value).tobytes()}


@pytest.mark.parametrize("name", CALLS)
def test_one_thread_and_two(name):
    call = CALLS[name]
    with threadpool_limits(1, "blas"):
        alone = bits(call())
    with threadpool_limits(2, "blas"):
        shared = bits(call())
    assert alone.keys() == shared.keys() and len(alone) > 0
    assert [path for path in alone if alone[path] != shared[path]] == []
