"""Candidates and other tiles than the shipped ones, timed on a GPU: what a plan might say instead.

A tile changes neither a formula nor an order that an error bound rests on, so that only times are
looked at here (those of candidates are by `gpu_errors.py`). What the compiler refuses is a row too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu import seconds_of
from gpu_candidates import candidates, planned
from gpu_exact import DOUBLE, SINGLE, data

from fastnc.kernels.gpu import cross_entropy as cross_entropy_gpu
from fastnc.kernels.gpu import trajectory as trajectory_gpu
from fastnc.kernels.gpu.plan import EXACT, OnePass, Tile, Wide, plan

# Of the first pass of a narrow problem: (BN, BD, warps, stages). Of its second: tiles.
FIRST = [(64, 64, 4, 3), (64, 32, 4, 4), (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2)]
# The same of logits in scaled fp16.
HALVES = [(64, 32, 4, 3), (64, 64, 4, 2), (128, 32, 8, 3), (128, 64, 8, 2)]
SECOND = [
    Tile(64, 64, 0, 4, 3), Tile(64, 64, 0, 4, 4), Tile(128, 64, 0, 8, 2), Tile(128, 64, 0, 8, 3),
    Tile(64, 128, 0, 8, 3), Tile(32, 64, 0, 4, 4),
]  # fmt: skip
# Of the three products of a wide problem, and of those whose operands are descriptors.
WIDE = [
    Tile(64, 128, 32, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 32, 8, 4),
    Tile(128, 128, 64, 8, 3), Tile(128, 256, 32, 8, 3), Tile(128, 64, 64, 4, 3),
]  # fmt: skip
DESCRIPTORS = [
    Tile(64, 128, 64, 4, 3), Tile(64, 128, 64, 4, 2), Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 2), Tile(64, 256, 64, 4, 2),
]  # fmt: skip
STAGES = (1, 2, 3)
SHIPPED = trajectory_gpu.SHIPPED_PRODUCTS, trajectory_gpu.WARPS
SPLITS = (66, 132, 264, 528)
CHUNKS = (4096, 8192, 16384, 32768)
CASES = [
    (10, 512, 2_000_000), (1000, 512, 100_000), (32, 512, 1_000_000), (100, 512, 500_000),
    (50_000, 1024, 8192),
]  # fmt: skip
DRY = [(3, 5, 7), (130, 4, 9)]


def forms(shape: Any) -> Iterator[tuple[str, Any]]:
    """A plan's neighbours, one thing changed at a time."""
    if isinstance(shape, OnePass):
        for stages in STAGES:
            yield f"stages {stages}", shape._replace(num_stages=stages)
    elif isinstance(shape, Wide):
        for name in ("logits",) if shape.CARRY else ("logits", "classes", "samples"):
            for tile in DESCRIPTORS if shape.TMA else WIDE:
                yield f"{name} {tuple(tile)}", shape._replace(**{name: tile})
        for chunk in () if shape.CARRY else CHUNKS:
            yield f"chunk {chunk}", shape._replace(chunk=chunk)
    else:
        for BN, BD, warps, stages in HALVES if shape.HALVES else FIRST:
            changed = {"BN": BN, "BD": BD, "num_warps": warps, "num_stages": stages}
            yield f"first {BN} {BD} {warps} {stages}", shape._replace(**changed)
        if not shape.HALVES:
            for tile in SECOND:
                yield f"second {tuple(tile)}", shape._replace(slices=tile)
            for splits in SPLITS:
                yield f"splits {splits}", shape._replace(splits=splits)


def calls_of(W: Any, H: Any, y: Any) -> dict[str, Callable[[], None]]:
    """The gradients, and the compensated step that a descent makes, by the plan of their time."""
    grads = torch.empty_like(W), torch.empty_like(H)
    loss = torch.empty(1, dtype=DOUBLE, device=W.device)
    state = W.clone(), H.clone(), torch.zeros_like(W), torch.zeros_like(H)
    scale = 1.0 / len(H)
    return {
        "gradients": lambda: cross_entropy_gpu.loss_and_grads(W, H, y, scale, loss, *grads, EXACT),
        "compensated step": lambda: cross_entropy_gpu.step(*state, y, scale, 1e-3, None, EXACT),
    }


def of_candidates(
    K: int, d: int, N: int, dtype: Any, device: str
) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """(case, candidate, call) of each that such a problem has, and of the shipped plan first."""
    W, H, y = data(K, d, N, dtype, device)
    found = candidates(W, H)
    if not found:
        return
    for name, call in calls_of(W, H, y).items():
        for what, shape in [("as shipped", None), *found]:

            def run(call: Callable[[], None] = call, shape: Any = shape) -> None:
                with planned(shape):
                    call()

            yield f"{name}, K={K}, d={d}, N={N}", what, run


def milliseconds_of(call: Callable[[], None], dry: bool) -> str:
    """What a call takes, or why there is no such call."""
    try:
        call()
        return f"{seconds_of(call, dry, False) * 1e3:.4g}"
    except Exception as failure:
        return (str(failure).splitlines() or [type(failure).__name__])[0][:80]


def small_problems(device: str, dry: bool) -> Iterator[tuple[str, str, str]]:
    """Epochs of the paper's problem in float64, products made by lanes or by tensor cores."""
    B, K, d, n, epochs = (2, 2, 3, 2, 2) if dry else (1024, 5, 20, 10, 1000)
    y = torch.arange(K * n, device=device) // n
    rates = torch.full((B,), 0.5, dtype=DOUBLE, device=device)
    make = torch.Generator(device).manual_seed(0)
    W, H = (
        torch.randn((B, m, d), generator=make, device=device, dtype=DOUBLE) * d**-0.5
        for m in (K, K * n)
    )
    none = W.new_empty((B, 0, 0))
    for products, warps in ((False, 0), (True, 1), (True, 2), (True, 4))[: 2 if dry else None]:

        def call() -> None:
            trajectory_gpu.descend_many(W, H, none, none, y, 1.0 / (K * n), rates, epochs)

        trajectory_gpu.SHIPPED_PRODUCTS, trajectory_gpu.WARPS = products, warps
        try:
            found = milliseconds_of(call, dry)
        finally:
            trajectory_gpu.SHIPPED_PRODUCTS, trajectory_gpu.WARPS = SHIPPED
        what = f"products, {warps} warps" if products else "as shipped"
        yield f"{epochs} epochs of {B} problems, float64", what, found


def variants(device: str, dry: bool) -> Iterator[tuple[str, str, str]]:
    """(case, what is changed, milliseconds or why not): candidates first, the shipped ones last."""
    cases = DRY if dry else CASES
    for K, d, N in cases:
        for case, what, call in of_candidates(K, d, N, SINGLE, device):
            yield case, what, milliseconds_of(call, dry)
    yield from small_problems(device, dry)
    for of_shipped in (False, True):
        for K, d, N in cases[: 1 if dry else None]:
            W, H, y = data(K, d, N, SINGLE, device)
            call = calls_of(W, H, y)["gradients"]
            plans = candidates(W, H)
            if of_shipped:
                plans = [("shipped", plan(*cross_entropy_gpu.problem(W, H, EXACT)))]
            for name, shape in plans:
                for what, changed in list(forms(shape))[: 1 if dry else None]:
                    with planned(changed):
                        found = milliseconds_of(call, dry)
                    yield f"gradients, K={K}, d={d}, N={N}, {name}", what, found
