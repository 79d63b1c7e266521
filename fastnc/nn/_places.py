"""The loss of other shapes: one sample without a batch; a classifier for each of many places."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastnc.nn import _formula
from fastnc.nn._autograd import apply, wanted_of
from fastnc.nn._byproducts import Extras, Rows, assembled, rows, with_extras
from fastnc.nn._checks import check, check_tensor
from fastnc.nn._errors import ShapeError
from fastnc.nn._problem import Problem, loss_dtype, working_dtype

_NO_EXTRAS = Extras(False, False, False, 0.0, None, 0.0)


def loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    extras: Extras | None,
) -> Any:
    """`linear_cross_entropy` of shapes that are not (N, d) and (K, d)."""
    for name, given in (("linear_bias", linear_bias), ("weight", weight)):
        if given is not None:
            check_tensor(name, given)
    extras = extras or _NO_EXTRAS
    ignored = -100 if ignore_index is None else ignore_index
    options = (reduction, ignored, label_smoothing)
    if input.dim() == 1 and linear_weight.dim() == 2:
        tensors = (input.unsqueeze(0), linear_weight, linear_bias, target.unsqueeze(0), weight)
        check(*tensors[:2], tensors[3], linear_bias, weight, ignore_index)
        made = with_extras(Problem(*tensors, *options, wanted_of(*tensors[:3])), extras)
        return _without_batch(made, reduction)
    if input.dim() != 2 or linear_weight.dim() < 2:
        raise ShapeError(
            "`input` must be (N, d), or (d,) for one sample, and `linear_weight` (K, d); got "
            f"{tuple(input.shape)} and {tuple(linear_weight.shape)}. Flatten sequences to (N, d) "
            "and their targets to (N,)."
        )
    K, *places, _ = linear_weight.shape
    lead = (input.shape[0], K) if target.is_floating_point() else (input.shape[0],)
    if target.shape != (*lead, *places):
        raise ShapeError(f"`target` must be {(*lead, *places)}; got {tuple(target.shape)}.")
    if linear_bias is not None and linear_bias.shape != (K, *places):
        raise ShapeError(f"`linear_bias` must be {(K, *places)}; got {tuple(linear_bias.shape)}.")
    whole = Problem(input, linear_weight, linear_bias, target, weight, *options, 0)
    parts = list(_each(whole, lead, math.prod(places), ignore_index))
    plain = extras == _NO_EXTRAS
    if plain and reduction != "none":
        return _total(whole, parts)
    made = [rows(part, extras) for part in parts]
    return assembled(_joined(made, whole, places), whole, extras)


def _each(whole: Problem, lead: tuple[int, ...], n_places: int, ignore_index: int | None) -> Any:
    """The problem of each place; half precision is widened once for all of them."""
    dtype = working_dtype(whole.input, whole.linear_weight, whole.target)
    K, d = whole.linear_weight.shape[0], whole.linear_weight.shape[-1]
    W = whole.linear_weight.reshape(K, n_places, d)
    y = whole.target.reshape(*lead, n_places)
    b = None if whole.linear_bias is None else whole.linear_bias.reshape(K, n_places)
    H, W = whole.input, W
    for i in range(max(n_places, 1)):
        if n_places == 0:
            # Nothing to compute, but shapes, dtypes and devices are checked all the same.
            bias = None if b is None else W.new_zeros(K)
            labels = y.new_zeros(lead)
            check(H, W.new_zeros(K, d), labels, bias, whole.weight, ignore_index)
            return
        bias = None if b is None else b[:, i]
        check(H, W[:, i], y[..., i], bias, whole.weight, ignore_index)
        if i == 0:
            H, W, b = H.to(dtype), W.to(dtype), None if b is None else b.to(dtype)
            bias = None if b is None else b[:, i]
        problem = whole._replace(
            input=H, linear_weight=W[:, i], linear_bias=bias, target=y[..., i],
            wanted=wanted_of(H, W, b),
        )  # fmt: skip
        yield problem


def _total(whole: Problem, parts: list[Problem]) -> Tensor:
    """A sum or a mean over all places; each computes its gradients with its sum."""
    input, linear_weight, _, target, weight, reduction, ignore_index, *_ = whole
    kind = loss_dtype(input, linear_weight, target)
    with torch.autocast(input.device.type, enabled=False):
        total = torch.zeros((), dtype=torch.float64, device=input.device) + _nothing_of(whole)
        for part in parts:
            total = total + apply(part._replace(reduction="sum"))
        if reduction == "mean":
            counted = None if target.is_floating_point() else target != ignore_index
            n = input.shape[0] * math.prod(linear_weight.shape[1:-1])
            total = _formula.mean(total, _formula.divisor(n, target, weight, counted))
    return total.to(kind)


def _nothing_of(whole: Problem) -> Tensor:
    """0 that depends on the tensors, so that an empty loss has gradients of zero."""
    return sum((x[:0].sum() for x in whole[:3] if isinstance(x, Tensor)), torch.zeros(()))


def _joined(made: list[Rows], whole: Problem, places: list[int]) -> Rows:
    """(N, ...) from the rows of each place."""
    N = whole.input.shape[0]
    if not made:
        nothing = whole.input.new_zeros((N, *places)) + _nothing_of(whole)
        return Rows(nothing, nothing, nothing.to(torch.int64), nothing)
    columns: list[Any] = [
        None if any(x is None for x in column) else torch.stack(column, 1).reshape(N, *places)
        for column in zip(*made, strict=True)
    ]
    return Rows(*columns)


def _without_batch(made: Any, reduction: str) -> Any:
    if isinstance(made, Tensor):
        return made.squeeze(0) if reduction == "none" else made
    loss, *others = made
    loss = loss.squeeze(0) if reduction == "none" else loss
    return type(made)(loss, *(None if x is None else x.squeeze(0) for x in others))
