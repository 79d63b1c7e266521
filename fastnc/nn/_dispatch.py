"""From the loss's options to one label, one spread and one scale a row; then to the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnc.nn._torch_rows import Result, Spread, Wanted, losses_and_grads

Grads = tuple[Tensor, Tensor, Tensor]
_NOTHING = Wanted(False, False, False)
_PLAIN = Spread(None, None, None)


def loss_dtype(input: Tensor, linear_weight: Tensor) -> torch.dtype:
    """That of torch's own: of the operands, but float32 where autocast is on."""
    dtype = torch.promote_types(input.dtype, linear_weight.dtype)
    if dtype.itemsize < 4 and torch.is_autocast_enabled(input.device.type):
        return torch.float32
    return dtype


def evaluate(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and of a reduced loss the wanted gradients (empty tensors where not wanted)."""
    dtype = loss_dtype(input, linear_weight)
    rows = _rows(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing)
    if reduction == "none":
        result = rows.run(rows.H.new_ones(()), _NOTHING)
        return rows.among_all(result.losses).to(dtype), *_as_given(input, linear_weight, result)
    total, result = rows.reduced(reduction == "mean", _flags(wanted))
    return total.to(dtype), *_as_given(input, linear_weight, rows.put_back(result))


def rows_backward(
    upstream: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
) -> Grads:
    """The wanted gradients of `sum_i upstream_i loss_i`: what "none" needs backward."""
    rows = _rows(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing)
    scale = upstream.to(rows.H.dtype)
    result = rows.run(scale if rows.kept is None else scale[rows.kept], _flags(wanted))
    return _as_given(input, linear_weight, rows.put_back(result))


@dataclass(frozen=True)
class _Rows:
    """The rows that count, in float32 or float64, and what is asked of each.

    `kept` are their places among `n_rows`; `counts (N,)`, on devices that are not worth waiting
    for, is 0 for rows that do not count and could not be left out.
    """

    H: Tensor
    W: Tensor
    bias: Tensor | None
    y: Tensor
    spread: Spread
    weights: Tensor | None
    kept: Tensor | None
    counts: Tensor | None
    n_rows: int

    def reduced(self, mean: bool, wanted: Wanted) -> tuple[Tensor, Result]:
        """The sum or weighted mean of the losses, in float64 on the CPU, and its gradients."""
        if self._plain() and len(self.H) and (not any(wanted) or wanted.H and wanted.W):
            from fastnc.nn._numba_rows import plain_loss_and_grads

            scale = 1.0 / len(self.H) if mean else 1.0
            total, grad_H, grad_W = plain_loss_and_grads(self.H, self.W, self.y, scale, wanted)
            loss = torch.tensor(total, dtype=torch.float64)
            return loss, Result(loss, grad_H, grad_W, None)
        divisor = self._total_weight() if mean else self.H.new_ones((), dtype=torch.float64)
        result = self.run(divisor.reciprocal().to(self.H.dtype), wanted)
        losses = result.losses if self.counts is None else result.losses * self.counts
        return losses.sum(dtype=torch.float64) / divisor, result

    def run(self, scale: Tensor, wanted: Wanted) -> Result:
        """Losses of the rows, and gradients of `sum_i scale_i loss_i`."""
        if self.counts is not None:
            scale = scale * self.counts
        arguments = (self.H, self.W, self.bias, self.y, self.spread, scale, wanted)
        if self.H.device.type == "cpu" and self.spread.rows is None:
            from fastnc.nn._numba_rows import losses_and_grads as by_numba

            return by_numba(*arguments)
        result = losses_and_grads(*arguments)
        if self.counts is None:
            return result
        return result._replace(losses=result.losses * self.counts)

    def _plain(self) -> bool:
        return self.H.device.type == "cpu" and self.bias is None and self.spread == _PLAIN

    def _total_weight(self) -> Tensor:
        """By what a mean divides: the labels' weights, or the rows that count."""
        if self.weights is not None:
            counted = self.weights if self.counts is None else self.weights * self.counts
            return counted.sum(dtype=torch.float64)
        if self.counts is not None:
            return self.counts.sum(dtype=torch.float64)
        return self.H.new_full((), len(self.H), dtype=torch.float64)

    def among_all(self, rows: Tensor) -> Tensor:
        """Values of the rows that count, among zeros for those that do not."""
        if self.kept is None:
            return rows
        return rows.new_zeros(self.n_rows, *rows.shape[1:]).index_copy_(0, self.kept, rows)

    def put_back(self, result: Result) -> Result:
        if result.grad_H is None:
            return result
        return result._replace(grad_H=self.among_all(result.grad_H))


def _rows(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> _Rows:
    dtype = torch.promote_types(input.dtype, linear_weight.dtype)
    dtype = torch.float32 if dtype.itemsize < 4 else dtype
    H = input.detach().to(dtype).contiguous()
    W = linear_weight.detach().to(dtype).contiguous()
    bias = None if linear_bias is None else linear_bias.detach().to(dtype)
    weight = None if weight is None else weight.detach().to(dtype)
    K, N = len(W), len(H)
    if target.is_floating_point():
        mass = target.detach().to(dtype)
        if label_smoothing > 0.0:
            mass = mass * (1.0 - label_smoothing) + label_smoothing / K
        if weight is not None:
            mass = mass * weight
        # Gaps are taken from the class with most of the target: near its optimum it wins.
        spread = Spread(mass.sum(1), None, mass)
        return _Rows(H, W, bias, mass.argmax(1), spread, None, None, None, N)
    y, kept, counts = target.to(torch.int64).contiguous(), None, None
    counted = y != ignore_index
    if y.device.type == "cpu":
        if not bool(counted.all()):
            kept = counted.nonzero().squeeze(1)
            H, y = H[kept], y[kept]
        _check_labels(y, K, ignore_index)
    else:
        torch._assert_async((~counted | ((y >= 0) & (y < K))).all())
        counts = counted.to(dtype)
        y = y.masked_fill(~counted, 0)
    weights = None if weight is None else weight[y]
    if label_smoothing == 0.0:
        return _Rows(H, W, bias, y, Spread(weights, None, None), weights, kept, counts, N)
    uniform = (W.new_ones(K) if weight is None else weight) * (label_smoothing / K)
    own = None if weights is None else weights * (1.0 - label_smoothing) + uniform.sum()
    return _Rows(H, W, bias, y, Spread(own, uniform, None), weights, kept, counts, N)


def _check_labels(y: Tensor, n_classes: int, ignore_index: int) -> None:
    if len(y) == 0:
        return
    low, high = torch.aminmax(y)
    if low < 0 or high >= n_classes:
        bad = y[(y < 0) | (y >= n_classes)][0]
        raise ValueError(
            f"`target` must lie in 0..{n_classes - 1} (`linear_weight` has {n_classes} rows) or be "
            f"`ignore_index`, {ignore_index}; got {int(bad)}."
        )


def _flags(wanted: int) -> Wanted:
    return Wanted(bool(wanted & 1), bool(wanted & 2), bool(wanted & 4))


def _as_given(input: Tensor, linear_weight: Tensor, result: Result) -> Grads:
    """Gradients in the dtypes of what they are gradients of; empty where there is none."""
    return (
        input.new_empty(0) if result.grad_H is None else result.grad_H.to(input.dtype),
        input.new_empty(0) if result.grad_W is None else result.grad_W.to(linear_weight.dtype),
        input.new_empty(0) if result.grad_bias is None else result.grad_bias.to(linear_weight.dtype),
    )
