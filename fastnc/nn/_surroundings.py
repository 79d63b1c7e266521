"""The context of a call: transforms, forward mode, recording, subclasses of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn

from fastnc.nn._problem import Problem

_PLAIN = (Tensor, nn.Parameter, type(None))
_forward_ad: Any = torch.autograd.forward_ad


# Looked up once: attribute lookups are a measurable part of a small call.
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is active.

    A kernel reads addresses, and would lose the derivatives that tensors then carry.
    """
    return _transforms_active() or _forward_ad._current_level >= 0


def pulled_back() -> bool:
    """Whether all active transforms are of reverse mode, and so need gradients only."""
    if _forward_ad._current_level >= 0 or not _transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return all(level.key() == torch._C._functorch.TransformType.Grad for level in stack)


def recorded() -> bool:
    """Whether operators are recorded: by a compiler, a tracer or a dispatch mode."""
    return torch.compiler.is_compiling() or _dispatch_modes() > 0 or _tracing_state() is not None


def alone() -> bool:
    """Neither transformed nor recorded."""
    return not (
        torch.compiler.is_compiling()
        or _transforms_active()
        or _forward_ad._current_level >= 0
        or _dispatch_modes()
        or _tracing_state()
    )


Made = TypeVar("Made")


def without_autocast(of_problem: Callable[..., Made]) -> Callable[..., Made]:
    """The function `of_problem(dtype, problem, ...)` with products in the dtype of its operands.

    Under autocast a product of float32 is one of bfloat16, in memory of that size. A backward pass
    may run there where its forward pass did not.
    """

    @wraps(of_problem)
    def run(dtype: torch.dtype, problem: Problem, *more: Any) -> Made:
        kind = problem.input.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return of_problem(dtype, problem, *more)
        with torch.autocast(kind, enabled=False):
            return of_problem(dtype, problem, *more)

    return run


def plain(problem: Problem) -> bool:
    """Whether all tensors are of torch's own classes."""
    # Written out: a loop over five tensors takes some hundredths of a small call.
    return (
        type(problem[0]) in _PLAIN
        and type(problem[1]) in _PLAIN
        and type(problem[2]) in _PLAIN
        and type(problem[3]) in _PLAIN
        and type(problem[4]) in _PLAIN
    )
