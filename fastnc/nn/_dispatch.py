"""From the loss's options to one label, one spread and one scale a row; then to the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnc.nn._torch_rows import Result, Spread, Wanted, losses_and_grads

_NOTHING = Wanted(False, False, False)


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
    rows = _Rows.of(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing)
    if reduction == "none":
        result = rows.run(torch.ones((), dtype=rows.H.dtype, device=rows.H.device), _NOTHING)
        return rows.spread_out(result.losses).to(dtype), *_cast(input, linear_weight, result)
    denominator = rows.total_weight() if reduction == "mean" else torch.ones(())
    denominator = denominator.to(rows.H)
    flags = Wanted(bool(wanted & 1), bool(wanted & 2), bool(wanted & 4))
    result = rows.run(denominator.reciprocal(), flags)
    total = (result.losses.sum(dtype=torch.float64) / denominator).to(dtype)
    return total, *_cast(input, linear_weight, rows.put_back(result))


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The wanted gradients of `sum_i upstream_i loss_i`: what "none" needs backward."""
    rows = _Rows.of(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing)
    flags = Wanted(bool(wanted & 1), bool(wanted & 2), bool(wanted & 4))
    scale = upstream if rows.kept is None else upstream[rows.kept]
    result = rows.run(scale.to(rows.H.dtype), flags)
    return _cast(input, linear_weight, rows.put_back(result))


@dataclass(frozen=True)
class _Rows:
    """The rows that count, in float32 or float64, and what is asked of each."""

    H: Tensor
    W: Tensor
    bias: Tensor | None
    y: Tensor
    spread: Spread
    weight: Tensor | None
    kept: Tensor | None
    n_rows: int

    @classmethod
    def of(
        cls,
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
        if weight is not None:
            weight = weight.detach().to(dtype)
        K = len(W)
        if target.is_floating_point():
            mass = target.detach().to(dtype)
            if label_smoothing > 0.0:
                mass = mass * (1.0 - label_smoothing) + label_smoothing / K
            if weight is not None:
                mass = mass * weight
            spread = Spread(mass.sum(1), None, mass)
            return cls(H, W, bias, mass.argmax(1), spread, None, None, len(H))
        y, kept = target.to(torch.int64), None
        ignored = y == ignore_index
        if y.device.type != "cpu":
            # A mask costs less than asking the device whether there is any.
            raise NotImplementedError
        if bool(ignored.any()):
            kept = (~ignored).nonzero().squeeze(1)
            H, y = H[kept], y[kept]
        _check_labels(y, K, ignore_index)
        own = None if weight is None else weight[y]
        uniform = None
        if label_smoothing > 0.0:
            each = torch.ones(K, dtype=dtype) if weight is None else weight
            uniform = each * (label_smoothing / K)
            if own is not None:
                own = own * (1.0 - label_smoothing) + uniform.sum()
        return cls(H, W, bias, y, Spread(own, uniform, None), weight, kept, len(target))

    def total_weight(self) -> Tensor:
        """By what a mean divides: the label's weights, or the rows that count."""
        if self.weight is None:
            return torch.tensor(float(len(self.H)))
        return self.weight[self.y].sum(dtype=torch.float64)

    def run(self, scale: Tensor, wanted: Wanted) -> Result:
        return losses_and_grads(self.H, self.W, self.bias, self.y, self.spread, scale, wanted)

    def spread_out(self, rows: Tensor) -> Tensor:
        """Values of the rows that count, among zeros for those that do not."""
        if self.kept is None:
            return rows
        return rows.new_zeros(self.n_rows, *rows.shape[1:]).index_copy_(0, self.kept, rows)

    def put_back(self, result: Result) -> Result:
        if result.grad_H is None:
            return result
        return result._replace(grad_H=self.spread_out(result.grad_H))


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


def _cast(
    input: Tensor, linear_weight: Tensor, result: Result
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the dtypes of what they are gradients of."""
    return (
        input.new_empty(0) if result.grad_H is None else result.grad_H.to(input.dtype),
        input.new_empty(0) if result.grad_W is None else result.grad_W.to(linear_weight.dtype),
        input.new_empty(0) if result.grad_bias is None else result.grad_bias.to(linear_weight.dtype),
    )
