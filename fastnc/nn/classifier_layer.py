"""The layer whose input is compared with its weight and bias, as they were in the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastnc.nn.hooks import Hooks
from fastnc.nn.rank_agreement import all_or_none
from fastnc.nn.tracked_layer import LOSSES, TrackedLayer, first_tensor, weight_and_bias

# What may be lost of a product: on GPUs TF32 may stand behind float32.
_LOST = {torch.float64: 1e-10, torch.float32: 2.0**-8}
_LOST_OF_HALF = 2.0**-5


class ClassifierLayer:
    """Copies the classifier's weight and bias whenever the module, or a part of it, has run.

    Whoever evaluates averaged weights puts the others back before metrics are computed, and
    training goes on. `named` is the classifier; by order it is the linear layer that ran last.
    """

    def __init__(self, hooks: Hooks, named: nn.Module | None, by_order: bool) -> None:
        self._hooks, self._named, self._by_order = hooks, named, by_order
        self.clear()

    def clear(self) -> None:
        """Forget what was copied."""
        self._copies: dict[str, list[Tensor | None]] = {}
        self._linear: dict[str, bool] = {}

    def ran(self, layers: list[TrackedLayer]) -> None:
        """The module has run."""
        for layer in layers:
            # All ranks must take part where sharded weights are gathered: at the end.
            if self._is(layer) and not layer.is_sharded:
                self._copy(layer)

    def left(self, layers: list[TrackedLayer]) -> None:
        """The loop has ended; a module that never ran as a whole was not copied yet."""
        for layer in layers:
            if self._is(layer) and layer.name not in self._copies:
                self._copy(layer)

    def look(self, layer: TrackedLayer, h: Tensor, output: Any) -> None:
        """What entered a layer and what left it."""
        if not self._hooks.inside:
            self.ran([layer])
        if layer.name not in self._linear and type(layer.module) not in (nn.Linear, *LOSSES):
            self._linear[layer.name] = _is_linear(layer, h.detach(), output)

    def check(self, layers: list[TrackedLayer]) -> None:
        """Raise where the classifier is no linear layer."""
        with all_or_none():
            for layer in layers:
                if self._is(layer) and not self._linear.get(layer.name, True):
                    raise ValueError(
                        f"what leaves the classifier, {layer.name!r}, must be `W h + bias` of its "
                        "own weight and bias; it is something else. Pass `classifier=None`, and "
                        "give `fastnc.collapse_metrics` the features and rows that it multiplies."
                    )

    def weight_and_bias(
        self, layer: TrackedLayer, dim: int | None, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Those of the classifier if `layer` is it and has `dim` columns, else None and None."""
        if not self._is(layer):
            return None, None
        weight, bias = self._copies.get(layer.name) or weight_and_bias(layer.module)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != dim:
            return None, None
        return (
            weight.detach().to(device),
            bias.detach().to(device) if isinstance(bias, Tensor) else None,
        )

    def _is(self, layer: TrackedLayer) -> bool:
        """Whether the features that enter this layer enter the classifier."""
        named = self._hooks.last if self._by_order else self._named
        return layer.at == "input" and layer.module is named

    def _copy(self, layer: TrackedLayer) -> None:
        held = self._copies.setdefault(layer.name, [None, None])
        for i, p in enumerate(weight_and_bias(layer.module)):
            if isinstance(p, Tensor):
                held[i] = p.detach().clone()


def _is_linear(layer: TrackedLayer, h: Tensor, output: Any) -> bool:
    """Whether a row of the output is `W h + bias`; True where the output shows no such row."""
    weight, bias = weight_and_bias(layer.module)
    try:
        z = first_tensor(output, layer.name).detach()
    except ValueError:
        return True
    if not (isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == h.shape[-1]):
        return True
    if z.shape != (*h.shape[:-1], len(weight)) or not z.numel():
        return True
    x, W = h.reshape(-1, h.shape[-1])[0].double(), weight.detach().double()
    b = bias.detach().double() if isinstance(bias, Tensor) else W.new_zeros(len(W))
    lost = max(_LOST.get(t.dtype, _LOST_OF_HALF) for t in (h, weight, z))
    apart = (z.reshape(-1, len(W))[0].double() - (W @ x + b)).abs()
    return bool((apart <= lost * (W.abs() @ x.abs() + b.abs())).all())
