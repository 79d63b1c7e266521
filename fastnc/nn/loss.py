"""Cross-entropy of a linear layer: torch's own signature, no logits kept, no digit lost."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from fastnc.nn._autograd import apply, wanted_of
from fastnc.nn._problem import Problem

_REDUCTIONS = ("none", "mean", "sum")


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy between `target` and the logits `input @ linear_weight.T + linear_bias`.

    The objective (4) of the paper, with the options of torch's loss. Equivalent to
    `torch.nn.functional.linear_cross_entropy` of torch 2.13 and later, with two differences:
    the N x K logits are never formed, and the loss and its gradients are exact in the terminal
    phase too, where `logsumexp(z) - z_y` and `p_y - 1` have no digits left.

    Parameters
    ----------
    input : (N, d) or (d,) float tensor
        float16 and bfloat16 are taken up in float32 and accumulated there.
    linear_weight : (K, d) or (K, ..., d) float tensor
        With further dimensions between, one classifier for each of their places.
    target : (N,) integers, or (N, K) floats; (N, ...) and (N, K, ...) with further dimensions
        Classes, or the probability of each class.
    linear_bias : (K,) or (K, ...) tensor, optional
    weight : (K,) tensor, optional
        Of each class; a mean is then divided by the sum of the labels' weights.
    reduction : "mean", "sum" or "none"
    ignore_index : int, or None for torch's -100
        Samples with this target count neither in the loss nor in the mean.
    label_smoothing : float in [0, 1]
        Share of the target that is spread evenly over all classes.

    Returns
    -------
    Tensor
        A scalar, or (N, ...) with `reduction="none"`; of the dtype of the operands, in float32
        under autocast.

    Raises
    ------
    TypeError, ValueError
        Shapes, dtypes, devices, labels or options that do not fit.
    NotImplementedError
        On differentiating twice.

    Notes
    -----
    Cost: `6 K N d` FLOP for the loss and both gradients, made together forward; with
    `reduction="none"` the logits are made once more backward. Memory for the gradients and for
    blocks of logits.

    Examples
    --------
    >>> import torch
    >>> from fastnc.nn import linear_cross_entropy
    >>> h = torch.tensor([[60.0, 0.0]], requires_grad=True)
    >>> W, y = torch.eye(2), torch.tensor([0])
    >>> loss = linear_cross_entropy(h, W, y)
    >>> loss.backward()
    >>> f"{loss:.4e}", f"{h.grad[0, 0]:.4e}"
    ('8.7565e-27', '-8.7565e-27')
    >>> torch.nn.functional.cross_entropy(h @ W.T, y).item()
    0.0
    """
    for name, given in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not isinstance(given, Tensor):
            raise _no_tensor(name, given)
    if not (input.dim() == 2 and linear_weight.dim() == 2):
        return _other_shapes(
            input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
            label_smoothing,
        )  # fmt: skip
    _check(input, linear_weight, target, linear_bias, weight, reduction, label_smoothing)
    if not (ignore_index is None or isinstance(ignore_index, int)):
        raise TypeError(f"`ignore_index` must be an integer; got {ignore_index!r}.")
    if target.is_floating_point() and ignore_index not in (None, -100):
        raise ValueError(
            "`ignore_index` must be left alone when `target` holds probabilities; "
            f"got {ignore_index}."
        )
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, reduction,
        -100 if ignore_index is None else ignore_index, float(label_smoothing),
        wanted_of(input, linear_weight, linear_bias),
    )  # fmt: skip
    return apply(problem)


class LinearCrossEntropyLoss(nn.Module):
    """A linear layer and the cross-entropy of its logits, as one module.

    Its parameters are those of `.linear`; what it computes, and the options, are
    `linear_cross_entropy`'s. Equivalent to `torch.nn.LinearCrossEntropyLoss`, with the same
    names in its `state_dict`.

    Parameters
    ----------
    in_features, num_classes : int
        d and K.
    out_features : tuple of int
        Further dimensions, one classifier for each of their places.
    bias : bool
        Whether the linear layer has a bias.
    device, dtype
        Of the linear layer.
    weight, reduction, ignore_index, label_smoothing
        As in `linear_cross_entropy`.

    Raises
    ------
    ValueError
        Options that do not fit.

    Examples
    --------
    >>> import torch
    >>> from fastnc.nn import LinearCrossEntropyLoss
    >>> head = LinearCrossEntropyLoss(64, 10, bias=True, label_smoothing=0.1)
    >>> loss = head(torch.randn(32, 64), torch.arange(32) % 10)
    >>> loss.backward()
    >>> head.linear.weight.grad.shape
    torch.Size([10, 64])
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check_options(reduction, label_smoothing)
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(
                f"`weight` must have shape ({num_classes},); got {tuple(weight.shape)}."
            )
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)
        rows = math.prod(self.out_features, start=num_classes)
        self.linear = nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of features (N, in_features)."""
        linear_weight: Tensor = self.linear.weight
        linear_bias: Tensor | None = self.linear.bias
        if self.out_features:
            shape = (self.num_classes, *self.out_features)
            linear_weight = linear_weight.reshape(*shape, -1)
            linear_bias = None if linear_bias is None else linear_bias.reshape(shape)
        return linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, "
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )


def _other_shapes(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
) -> Tensor:
    """One sample without a batch; or a classifier for each place of further dimensions."""
    options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index}
    options["label_smoothing"] = label_smoothing
    if input.dim() == 1 and linear_weight.dim() == 2:
        loss = linear_cross_entropy(
            input.unsqueeze(0), linear_weight, target.unsqueeze(0), linear_bias=linear_bias,
            reduction=reduction, **options,
        )  # fmt: skip
        return loss.squeeze(0) if reduction == "none" else loss
    if input.dim() != 2 or linear_weight.dim() < 2:
        raise ValueError(
            "`input` must be (N, d), or (d,) for one sample, and `linear_weight` (K, d); got "
            f"{tuple(input.shape)} and {tuple(linear_weight.shape)}. Flatten sequences to (N, d) "
            "and their targets to (N,)."
        )
    _check_options(reduction, label_smoothing)
    K, *places, d = linear_weight.shape
    n_places = math.prod(places)
    probabilities = target.is_floating_point()
    lead = (len(input), K) if probabilities else (len(input),)
    if target.shape != (*lead, *places):
        raise ValueError(f"`target` must be {(*lead, *places)}; got {tuple(target.shape)}.")
    if linear_bias is not None and linear_bias.shape != (K, *places):
        raise ValueError(f"`linear_bias` must be {(K, *places)}; got {tuple(linear_bias.shape)}.")
    W = linear_weight.reshape(K, n_places, d)
    y = target.reshape(*lead, n_places)
    b = None if linear_bias is None else linear_bias.reshape(K, n_places)
    losses = [
        linear_cross_entropy(
            input,
            W[:, i],
            y[..., i],
            linear_bias=None if b is None else b[:, i],
            reduction="none" if reduction == "none" else "sum",
            **options,
        )
        for i in range(n_places)
    ]
    if reduction == "none":
        return torch.stack(losses, dim=1).reshape(len(input), *places)
    total = torch.stack(losses).sum()
    if reduction == "sum":
        return total
    if probabilities:
        return total / (len(input) * n_places)
    counted = target != (-100 if ignore_index is None else ignore_index)
    if weight is None:
        return total / counted.sum()
    return total / (weight[target.clamp(0, K - 1)] * counted).sum()


def _no_tensor(name: str, given: object) -> TypeError:
    return TypeError(
        f"`{name}` must be a torch.Tensor; got {type(given).__name__}. For NumPy arrays there is "
        "`fastnc.loss_and_grads`."
    )


def _check_options(reduction: str, label_smoothing: float) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    if not (isinstance(label_smoothing, Real) and 0.0 <= label_smoothing <= 1.0):
        raise ValueError(f"`label_smoothing` must lie in [0, 1]; got {label_smoothing!r}.")


def _check(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> None:
    _check_options(reduction, label_smoothing)
    N, d = input.shape
    K, columns = linear_weight.shape
    if columns != d:
        raise ValueError(
            f"`linear_weight` must have {d} columns, as `input` has; "
            f"got shape {tuple(linear_weight.shape)}."
        )
    if K == 0 or d == 0:
        raise ValueError(f"`linear_weight` must not be empty; got {tuple(linear_weight.shape)}.")
    if not (input.is_floating_point() and linear_weight.is_floating_point()):
        raise TypeError(
            "`input` and `linear_weight` must hold floats; "
            f"got {input.dtype} and {linear_weight.dtype}."
        )
    if target.is_floating_point():
        if target.shape != (N, K):
            raise ValueError(
                f"`target` must be ({N}, {K}) where it holds probabilities; "
                f"got {tuple(target.shape)}."
            )
        if target.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "`target` must not require a gradient: none is computed for it. Detach it, or use "
                "torch's own cross-entropy."
            )
    elif target.shape != (N,):
        raise ValueError(
            f"`target` must have one label a sample, ({N},); got {tuple(target.shape)}."
        )
    elif target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"`target` must hold integers or probabilities; got {target.dtype}.")
    for name, given in (("linear_bias", linear_bias), ("weight", weight)):
        if given is not None and not isinstance(given, Tensor):
            raise _no_tensor(name, given)
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "`weight` must not require a gradient: none is computed for it. Detach it."
        )
    for name, given in (("linear_bias", linear_bias), ("weight", weight)):
        if given is not None and given.shape != (K,):
            raise ValueError(f"`{name}` must have shape ({K},); got {tuple(given.shape)}.")
    for name, given in (
        ("linear_weight", linear_weight), ("target", target), ("linear_bias", linear_bias),
        ("weight", weight),
    ):  # fmt: skip
        if given is not None and given.device != input.device:
            raise ValueError(
                f"`{name}` must be on the device of `input`, {input.device}; got {given.device}."
            )
