"""A linear layer and the cross-entropy of its logits as one module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastnc.nn._checks import check_extras, check_options
from fastnc.nn._errors import ShapeError
from fastnc.nn.functional import linear_cross_entropy


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
    weight, reduction, ignore_index, label_smoothing, options
        As in `linear_cross_entropy`.
    return_lse, return_predictions, return_entropies, z_loss_weight, logit_scale, softcap
        As there.

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
        options: Any = None,
        return_lse: bool = False,
        return_predictions: bool = False,
        return_entropies: bool = False,
        z_loss_weight: float = 0.0,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        check_options(reduction, label_smoothing)
        check_extras(options, z_loss_weight, logit_scale, softcap)
        if weight is not None and weight.shape != (num_classes,):
            raise ShapeError(
                f"`weight` must have shape ({num_classes},); got {tuple(weight.shape)}."
            )
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.label_smoothing, self.options = label_smoothing, options
        self.return_lse, self.return_predictions = return_lse, return_predictions
        self.return_entropies = return_entropies
        self.z_loss_weight, self.logit_scale = z_loss_weight, logit_scale
        self.softcap = softcap
        self.register_buffer("weight", weight)
        rows = math.prod(self.out_features, start=num_classes)
        self.linear = nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """The loss of features (N, in_features)."""
        linear_weight: Tensor = self.linear.weight
        linear_bias: Tensor | None = self.linear.bias
        if self.out_features:
            shape = (self.num_classes, *self.out_features)
            linear_weight = linear_weight.reshape(*shape, self.linear.in_features)
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
            options=self.options,
            return_lse=self.return_lse,
            return_predictions=self.return_predictions,
            return_entropies=self.return_entropies,
            z_loss_weight=self.z_loss_weight,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
        )

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, "
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )
