"""Checks of the loss's arguments; each message names the argument, the rule and the way out."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastnc.nn._errors import DtypeError, ShapeError

REDUCTIONS = ("none", "mean", "sum")
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_options(reduction: str, label_smoothing: float) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    if not (isinstance(label_smoothing, Real) and 0.0 <= label_smoothing <= 1.0):
        raise ValueError(f"`label_smoothing` must lie in [0, 1]; got {label_smoothing!r}.")


def check_extras(
    options: Any, z_loss_weight: float, logit_scale: float | Tensor | None, softcap: float | None
) -> None:
    """The options that torch's loss does not have."""
    if options is not None and type(options).__name__ != "LinearCrossEntropyOptions":
        raise TypeError(
            "`options` must be a torch.nn.LinearCrossEntropyOptions or None; got "
            f"{type(options).__name__}."
        )
    if not (isinstance(z_loss_weight, Real) and 0.0 <= z_loss_weight < math.inf):
        raise ValueError(
            f"`z_loss_weight` must be a finite number of at least 0; got {z_loss_weight!r}."
        )
    if isinstance(logit_scale, Tensor):
        if logit_scale.dim() or not logit_scale.is_floating_point():
            raise ShapeError(
                "`logit_scale` must be a number or a tensor of one float without dimensions; got "
                f"shape {tuple(logit_scale.shape)} of {logit_scale.dtype}."
            )
    elif not (
        logit_scale is None or (isinstance(logit_scale, Real) and math.isfinite(logit_scale))
    ):
        raise ValueError(f"`logit_scale` must be a finite number; got {logit_scale!r}.")
    if not (softcap is None or (isinstance(softcap, Real) and 0.0 < softcap < math.inf)):
        raise ValueError(f"`softcap` must be a finite number above 0; got {softcap!r}.")


def integer(ignore_index: Any) -> int:
    """`ignore_index` as Python's integer; NumPy's are taken, floats are not."""
    try:
        return operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"`ignore_index` must be an integer; got {ignore_index!r}.") from None


def check_tensor(name: str, given: object) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor; got {type(given).__name__}. For NumPy arrays there "
            "is `fastnc.loss_and_grads`."
        )


def check(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int | None,
) -> None:
    """Shapes (N, d) and (K, d), dtypes, devices."""
    N, d = input.shape
    K, columns = linear_weight.shape
    if isinstance(d, Tensor):
        # A trace would record the sizes as constants; the operator checks them itself.
        return
    if columns != d:
        raise ShapeError(
            f"`linear_weight` must have {d} columns, as `input` has; "
            f"got shape {tuple(linear_weight.shape)}."
        )
    if not (input.dtype in _FLOATS and linear_weight.dtype in _FLOATS):
        raise DtypeError(
            "`input` and `linear_weight` must hold floats of 16, 32 or 64 bits; "
            f"got {input.dtype} and {linear_weight.dtype}."
        )
    if target.is_floating_point():
        if target.dtype not in _FLOATS:
            raise DtypeError(
                f"`target` must hold integers or floats of 16 to 64 bits; got {target.dtype}."
            )
        if target.shape != (N, K):
            raise ShapeError(
                f"`target` must be ({N}, {K}) where it holds probabilities; "
                f"got {tuple(target.shape)}."
            )
        if ignore_index not in (None, -100):
            raise ShapeError(
                "`ignore_index` must be left alone when `target` holds probabilities; "
                f"got {ignore_index}."
            )
    elif target.shape != (N,):
        raise ShapeError(
            f"`target` must have one label a sample, ({N},); got {tuple(target.shape)}."
        )
    elif target.dtype == torch.bool or target.is_complex():
        raise DtypeError(
            f"`target` must hold integers or probabilities; got {target.dtype}. Convert it: "
            "`target.long()`."
        )
    for name, given in (("linear_bias", linear_bias), ("weight", weight)):
        if given is not None:
            check_tensor(name, given)
            if given.shape != (K,):
                raise ShapeError(f"`{name}` must have shape ({K},); got {tuple(given.shape)}.")
            if given.dtype not in _FLOATS:
                raise DtypeError(
                    f"`{name}` must hold floats of 16, 32 or 64 bits; got {given.dtype}."
                )
    device = input.device
    for name, given in (
        ("linear_weight", linear_weight), ("target", target), ("linear_bias", linear_bias),
        ("weight", weight),
    ):  # fmt: skip
        if given is not None and given.device != device:
            raise ShapeError(
                f"`{name}` must be on the device of `input`, {device}; got {given.device}."
            )


def refusal(*tensors: Any) -> Exception | None:
    """The error for tensors that are not dense, or None if all are."""
    for x in tensors:
        if isinstance(x, Tensor):
            nested, quantised = x.is_nested, x.is_quantized
            if nested or quantised or x.layout is not torch.strided:
                kind = "nested" if nested else "quantised" if quantised else str(x.layout)
                return ShapeError(
                    "`input`, `linear_weight`, `target`, `linear_bias` and `weight` must be dense "
                    f"tensors; got a {kind} one. Call `.to_dense()`, `.dequantize()`, or "
                    "`torch.cat` of a nested tensor's parts."
                )
    return None
