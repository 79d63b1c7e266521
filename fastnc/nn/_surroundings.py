"""What a call stands in: a tensor may be more than its numbers, and a call may be recorded."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn

from fastnc.nn._problem import Problem

_PLAIN = (Tensor, nn.Parameter, type(None))
_forward_ad: Any = torch.autograd.forward_ad


# Looked up once: a small call has few of these lookups' time to spare.
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def transformed() -> bool:
    """Whether derivatives may be asked for that a kernel's addresses would lose.

    Under the transforms of `torch.func` and in forward mode a tensor is more than its numbers.
    """
    return _transforms_active() or _forward_ad._current_level >= 0


def pulled_back() -> bool:
    """Whether all transforms around are of reverse mode, which ask for gradients and no more."""
    if _forward_ad._current_level >= 0 or not _transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return all(level.key() == torch._C._functorch.TransformType.Grad for level in stack)


def recorded() -> bool:
    """Whether somebody writes down which operators run: a compiler, a tracer, a dispatch mode."""
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


def plain(problem: Problem) -> bool:
    """Whether its tensors are torch's own kind, and no subclass with ideas of its own."""
    # Written out: a loop over five would cost a call some hundredths of its time.
    return (
        type(problem[0]) in _PLAIN
        and type(problem[1]) in _PLAIN
        and type(problem[2]) in _PLAIN
        and type(problem[3]) in _PLAIN
        and type(problem[4]) in _PLAIN
    )
