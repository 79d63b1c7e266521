"""Hooks on layers while a loop runs, in eager mode: compiled code has none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastnc.nn.tracked_layer import TrackedLayer


class Hooks:
    """Tells `came(layer, tensor)` of what enters or leaves layers, and which linear one ran last.

    A hook that was set after `torch.compile` would be passed over without a word, or until a batch
    of another size comes. So compiled modules run eagerly in the meantime.
    """

    def __init__(self, linear: list[nn.Module]) -> None:
        self.linear = linear
        self.last: nn.Module | None = None
        self._handles: list[Any] = []
        self._stance: Any = None

    def __bool__(self) -> bool:
        return bool(self._handles)

    def set(self, layers: list[TrackedLayer], came: Callable[[TrackedLayer, Tensor], None]) -> None:
        """Begins; `remove` ends it."""
        if "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
        # Before the hooks of layers, which may stop a loop by an exception.
        self._handles = [m.register_forward_pre_hook(self._ran) for m in self.linear]
        for layer in layers:
            if layer.at == "input":

                def before(_: Any, inputs: Any, named: Any, layer: TrackedLayer = layer) -> None:
                    came(layer, layer.tensor(inputs, named, None))

                handle = layer.module.register_forward_pre_hook(before, with_kwargs=True)
            else:

                def after(_: Any, inputs: Any, out: Any, layer: TrackedLayer = layer) -> None:
                    came(layer, layer.tensor((), {}, out))

                handle = layer.module.register_forward_hook(after)
            self._handles.append(handle)

    def remove(self) -> None:
        """Leaves the model, and how compiled modules run, as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def _ran(self, module: nn.Module, _: Any) -> None:
        self.last = module
