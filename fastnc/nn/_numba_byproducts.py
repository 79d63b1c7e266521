"""The loss and its further outputs on the CPU, for class targets and few logits, by one C call.

`_torch_rows` has the same for everything else, in some sixty torch operations, whose fixed cost is
more than that of a small problem.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastnc.kernels.cpu.softmax_rows import (
    ALONG,
    BY_ENTROPIES,
    BY_LOSS,
    BY_LSE,
    DONE,
    ENTROPIES,
    LSE,
    MEAN,
    PREDICTIONS,
    RESIDUALS,
    SOME_IGNORED,
    WEIGHT,
    rows_call,
)
from fastnc.nn._labels import bad_label
from fastnc.nn._problem import Problem
from fastnc.nn._surroundings import without_autocast
from fastnc.nn._torch_rows import Asked, Pass, Upstream, summed

_KINDS = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}


@without_autocast
def one_pass(
    dtype: torch.dtype, problem: Problem, asked: Asked, upstream: Upstream | None
) -> Pass | None:
    """As `_torch_rows.one_pass`; None if there are labels to ignore, without any result.

    Cost: as there, and memory for all logits.
    """
    (
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index, smoothing,
        wanted, _,
    ) = problem  # fmt: skip
    H, W = _laid(input, dtype), _laid(linear_weight, dtype)
    y = _laid(target, torch.int64)
    (N, _), K = H.shape, W.shape[0]
    z = H @ W.mT if linear_bias is None else torch.addmm(_laid(linear_bias, dtype), H, W.mT)
    losses = H.new_empty(N)
    lse = H.new_empty(N) if asked.lse else None
    predictions = y.new_empty(N) if asked.predictions else None
    entropies = H.new_empty(N) if asked.entropies else None
    total = H.new_empty((), dtype=torch.float64)
    flags = MEAN if reduction == "mean" else 0
    # References: these tensors must live as long as their addresses are in use.
    held = [None if weight is None else _laid(weight, dtype)]
    if held[0] is not None:
        flags |= WEIGHT
    flags |= LSE if asked.lse else 0
    flags |= PREDICTIONS if asked.predictions else 0
    flags |= ENTROPIES if asked.entropies else 0
    flags |= RESIDUALS if wanted else 0
    if upstream is None:
        held += [None] * 3
    else:
        flags |= ALONG
        for u, bit in zip(upstream, (BY_LOSS, BY_LSE, BY_ENTROPIES), strict=True):
            held.append(None if u is None else _laid(u, dtype))
            flags |= 0 if u is None else bit
    places = [0 if x is None else x.data_ptr() for x in held]
    outs = [0 if x is None else x.data_ptr() for x in (losses, lse, predictions, entropies, total)]
    found = rows_call(_KINDS[dtype])(
        z.data_ptr(), y.data_ptr(), *places, *outs, N, K, flags, ignore_index, smoothing,
        asked.z_loss_weight,
    )  # fmt: skip
    if found == SOME_IGNORED:
        return None
    if found != DONE:
        raise bad_label(K, ignore_index, int(y[found]), found)
    grads: list[Tensor | None] = [None] * 3
    if wanted & 1:
        grads[0] = z @ W if N != 1 and W.shape[1] > 1 else summed(z, W)
    if wanted & 2:
        grads[1] = z.mT @ H
    if wanted & 4:
        grads[2] = z.sum(0)
    return Pass(losses if reduction == "none" else total, lse, predictions, entropies, grads)


def _laid(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` contiguous, in `dtype`."""
    if x._is_zerotensor():
        # It has a shape and no memory.
        return torch.zeros(x.shape, dtype=dtype, device=x.device)
    return x.detach().to(dtype).resolve_neg().contiguous()
