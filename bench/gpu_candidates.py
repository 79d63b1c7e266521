"""Plans that wait for a GPU to time them, beside the shipped one; how to run one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastnc.kernels.gpu import cross_entropy as cross_entropy_gpu
from fastnc.kernels.gpu.plan import (
    EXACT,
    HALVES_TILES,
    ONE_PASS_DIM,
    ONE_PASS_STAGES,
    Narrow,
    in_descriptors,
    in_halves,
    in_one_pass,
    plan,
)


def candidates(W: Any, H: Any) -> list[tuple[str, Any]]:
    """(name, plan) of those for a problem in float32 at the exact tier; the shipped one is none."""
    given = cross_entropy_gpu.problem(W, H, EXACT)
    shape = plan(*given)
    if given[3] != "float32" or not given[-1]:
        return []
    if not isinstance(shape, Narrow):
        by_descriptors = in_descriptors(shape)
        return [
            ("descriptors", by_descriptors),
            ("descriptors, carried", by_descriptors._replace(CARRY=True)),
        ]
    found: list[tuple[str, Any]] = []
    if shape.BK in ONE_PASS_STAGES and W.shape[1] <= ONE_PASS_DIM:
        found.append(("one pass", in_one_pass(shape, W.shape[1], len(H))))
    if shape.BK in HALVES_TILES:
        found.append(("logits in fp16", in_halves(shape)))
    return found


@contextmanager
def planned(shape: Any) -> Iterator[None]:
    """Calls of the objective have this plan; the shipped one if it is None."""
    if shape is None:
        yield
        return
    cross_entropy_gpu.plan = lambda *_: shape
    try:
        yield
    finally:
        cross_entropy_gpu.plan = plan
