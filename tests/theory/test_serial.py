"""Bits that depend on the arguments alone, not on how many threads a BLAS has."""

import dataclasses

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import fastnc
from fastnc.dynamics.snapshot import measure
from fastnc.theory.rates import aligned_singular_values, constants


def points():
    """Large enough for OpenBLAS to share every product and sum among its threads."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((40, 300))
    y = np.repeat(np.arange(40), 60)
    return W, W[y] + 0.1 * rng.standard_normal((2400, 300)), y


@pytest.mark.parametrize(
    "function",
    [
        fastnc.kkt, fastnc.margins, fastnc.margin_ratio, fastnc.margin_decomposition, measure,
        aligned_singular_values, constants,
    ],
)  # fmt: skip
def test_one_blas_thread_and_three_give_the_same_bits(function):
    W, H, y = points()
    found = []
    for threads in (1, 3):
        with threadpool_limits(threads, user_api="blas"):
            got = function(W, H, y)
        if dataclasses.is_dataclass(got):
            got = dataclasses.asdict(got)
        values = got.values() if isinstance(got, dict) else [got]
        found.append([np.asarray(value).tobytes() for value in values])
    assert found[0] == found[1]
