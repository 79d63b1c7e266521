"""Cross-entropy of a linear layer, with torch's signature, exact and without all logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, is_grad_enabled
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastnc.nn import _places
from fastnc.nn._autograd import apply, wanted_of
from fastnc.nn._byproducts import Extras, Output, OutputWithEntropies, with_extras
from fastnc.nn._checks import (
    REDUCTIONS,
    check,
    check_extras,
    check_options,
    check_tensor,
    integer,
    refusal,
)
from fastnc.nn._dispatch import evaluate
from fastnc.nn._eager import apply_usual
from fastnc.nn._labels import as_int64
from fastnc.nn._problem import Problem
from fastnc.nn._usual import usual


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
    options: Any = None,
    return_lse: bool = False,
    return_predictions: bool = False,
    return_entropies: bool = False,
    z_loss_weight: float = 0.0,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
) -> Any:
    """Cross-entropy between `target` and the logits `input @ linear_weight.T + linear_bias`.

    The objective (4) of the paper, with the options of torch's loss. Equivalent to
    `torch.nn.functional.linear_cross_entropy` of torch 2.13 and later, with two differences:
    the N x K logits are never formed, and the loss and its gradients are exact in the terminal
    phase too, where `logsumexp(z) - z_y` and `p_y - 1` have no digits left. Differentiable any
    number of times, by input, linear_weight, linear_bias, probabilities, class weights and
    `logit_scale`, backward, forward and by the transforms of `torch.func`.

    Parameters
    ----------
    input : (N, d) or (d,) float tensor
        float16 and bfloat16 are converted to float32 and accumulated there.
    linear_weight : (K, d) or (K, ..., d) float tensor
        With further dimensions between, one classifier for each of their places. A `DTensor`
        whose classes are divided among ranks stays divided: see Notes.
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
    options : torch.nn.LinearCrossEntropyOptions, optional
        Accepted and ignored: it chooses how torch saves memory.
    return_lse, return_predictions, return_entropies : bool
        Also return `log sum_j e^{z_j}`, the class of the largest logit, the entropy of the
        softmax, of each sample.
    z_loss_weight : float
        Adds `z_loss_weight * lse^2` to each sample's loss, without its class's weight; a mean
        divides it by the number of samples that count.
    logit_scale : float or scalar tensor, optional
        Multiplies the logits, bias included.
    softcap : float, optional
        Logits become `softcap * tanh(z / softcap)`, after `logit_scale`.

    Returns
    -------
    Tensor, or a named tuple (loss, lse, predictions[, entropies])
        A scalar, or (N, ...) with `reduction="none"`; of the dtype of the operands, in float32
        under autocast. The tuple where a `return_` option is set, None where one is not;
        its further members are (N, ...), float32 or float64 and differentiable but for the
        predictions, int64. A sample that is ignored has an lse and an entropy of 0.

    Raises
    ------
    TypeError, ValueError
        Shapes, dtypes, devices, labels or options that do not fit; where torch raises RuntimeError
        or IndexError, the error is one of these too.

    Notes
    -----
    Cost: `6 K N d` FLOP for the loss and both gradients, computed together in the forward pass;
    with `reduction="none"`, and for gradients of lse and entropies, the backward pass computes the
    logits again. Memory for the gradients and for blocks of logits. Second derivatives, forward
    mode, `torch.func.vmap` and `reduction="none"` under `torch.func` form all logits; a Hessian
    product of a plain loss on the CPU and `torch.func.grad` do not.

    On CUDA labels are not waited for: where one fits no class the loss is NaN.

    Where `linear_weight` is a `DTensor` that divides the classes among the ranks of a mesh of one
    dimension, each rank works on its own classes, and two reductions of a few numbers a sample
    join them; such a loss too is differentiable any number of times. Under FSDP a module's weights
    are whole while it runs, and no rank has a part of the classes.

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
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight):
        _check_tensors(input, linear_weight, target)
        return handle_torch_function(
            linear_cross_entropy, (input, linear_weight, target, linear_bias, weight),
            input, linear_weight, target, linear_bias=linear_bias, weight=weight,
            reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing,
            options=options, return_lse=return_lse, return_predictions=return_predictions,
            return_entropies=return_entropies, z_loss_weight=z_loss_weight,
            logit_scale=logit_scale, softcap=softcap,
        )  # fmt: skip
    more = (
        return_lse or return_predictions or return_entropies or z_loss_weight or options is not None
        or logit_scale is not None or softcap is not None
    )  # fmt: skip
    if (
        not more
        and weight is None
        and type(ignore_index) is int
        and type(label_smoothing) is float
        and 0.0 <= label_smoothing <= 1.0
        and reduction in REDUCTIONS
    ):
        laid = usual(input, linear_weight, target, linear_bias)
        if laid is not None:
            wanted = 0
            if is_grad_enabled():
                wanted = input.requires_grad + 2 * linear_weight.requires_grad
                if linear_bias is not None:
                    wanted += 4 * linear_bias.requires_grad
            # `Problem(...)` itself takes twice as long.
            problem = tuple.__new__(
                Problem,
                (
                    input, linear_weight, linear_bias, target, None, reduction, ignore_index,
                    label_smoothing, wanted, 0.0,
                ),
            )  # fmt: skip
            if wanted:
                return apply_usual(input, linear_weight, linear_bias, problem, laid)
            return evaluate(problem)[0]
    _check_tensors(input, linear_weight, target)
    check_options(reduction, label_smoothing)
    target = as_int64(target)
    extras = None
    if more:
        check_extras(options, z_loss_weight, logit_scale, softcap)
        extras = Extras(
            bool(return_lse), bool(return_predictions), bool(return_entropies),
            float(z_loss_weight), logit_scale, 0.0 if softcap is None else float(softcap),
        )  # fmt: skip
    if not (ignore_index is None or type(ignore_index) is int):
        ignore_index = integer(ignore_index)
    try:
        if not (input.dim() == 2 and linear_weight.dim() == 2):
            return _places.loss(
                input, linear_weight, target, linear_bias, weight, reduction, ignore_index,
                float(label_smoothing), extras,
            )  # fmt: skip
        check(input, linear_weight, target, linear_bias, weight, ignore_index)
        problem = Problem(
            input, linear_weight, linear_bias, target, weight, reduction,
            -100 if ignore_index is None else ignore_index, float(label_smoothing),
            wanted_of(input, linear_weight, linear_bias),
        )  # fmt: skip
        return apply(problem) if extras is None else with_extras(problem, extras)
    except RuntimeError:
        # Only after a failure: to check five tensors takes a tenth of a small call.
        reason = refusal(input, linear_weight, target, linear_bias, weight)
        if reason is None:
            raise
        raise reason from None


def _check_tensors(*given: Tensor) -> None:
    for name, x in zip(("input", "linear_weight", "target"), given, strict=True):
        check_tensor(name, x)


__all__ = ["Output", "OutputWithEntropies", "linear_cross_entropy"]
