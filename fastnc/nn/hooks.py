"""Hooks on layers while a loop runs, in eager mode: compiled code has none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastnc.nn.tracked_layer import TrackedLayer


class Hooks:
    """Calls `came(layer, tensor)` with what enters or leaves layers; `last` is the last linear one.

    Compiled code ignores a hook that is set after `torch.compile`, until it is compiled again for a
    batch of another size. So compiled modules run eagerly while hooks are set. A copy that is made
    of the network meanwhile has copies of the hooks, which stay on it: they do nothing.
    """

    def __init__(self, linear: list[nn.Module]) -> None:
        self.linear = linear
        self.last: nn.Module | None = None
        # Whether the module of `after` is running: a loop may call a part of it.
        self.inside = False
        self._handles: list[Any] = []
        self._stance: Any = None

    def __bool__(self) -> bool:
        return bool(self._handles)

    def set(
        self,
        layers: list[TrackedLayer],
        came: Callable[[TrackedLayer, Tensor], None],
        went: Callable[[TrackedLayer, Tensor, Any], None],
    ) -> None:
        """Set the hooks, until `remove`; `went` is told what enters a layer and what leaves it."""
        if "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
        # Before the hooks of layers, which may stop a loop by an exception.
        self._handles = [m.register_forward_pre_hook(self._ran) for m in self.linear]
        for layer in layers:
            if layer.at == "input":

                def before(m: Any, inputs: Any, named: Any, layer: TrackedLayer = layer) -> None:
                    if m is layer.module:
                        came(layer, layer.tensor(inputs, named, None))

                def behind(
                    m: Any, inputs: Any, named: Any, out: Any, layer: TrackedLayer = layer
                ) -> None:
                    if m is layer.module:
                        went(layer, layer.tensor(inputs, named, None), out)

                handle = layer.module.register_forward_pre_hook(before, with_kwargs=True)
                self._handles.append(layer.module.register_forward_hook(behind, with_kwargs=True))
            else:

                def after(m: Any, inputs: Any, out: Any, layer: TrackedLayer = layer) -> None:
                    if m is layer.module:
                        came(layer, layer.tensor((), {}, out))

                handle = layer.module.register_forward_hook(after)
            self._handles.append(handle)

    def after(self, module: nn.Module, ran: Callable[[], None]) -> None:
        """Call `ran` whenever the module has run, until `remove`."""

        def before(m: Any, inputs: Any) -> None:
            self.inside = self.inside or m is module

        def behind(m: Any, inputs: Any, out: Any) -> None:
            if m is module:
                self.inside = False
                ran()

        self._handles.append(module.register_forward_pre_hook(before))
        # Called too where a layer's hook stops the loop by an exception.
        self._handles.append(module.register_forward_hook(behind, always_call=True))

    def remove(self) -> None:
        """Remove the hooks, and let compiled modules run compiled again."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.inside = [], False
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def _ran(self, module: nn.Module, _: Any) -> None:
        if any(module is own for own in self.linear):
            self.last = module
