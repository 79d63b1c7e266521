"""Layers of a network by name, and the features that enter or leave them, one sample a row."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fastnc._core.files import describe
from fastnc.nn.channels import channels_last
from fastnc.nn.loss import LinearCrossEntropyLoss

# What is tracked where nothing is named: the last layer of torchvision's VGG.
_DEFAULT = "classifier.6"
LOSSES = (LinearCrossEntropyLoss, getattr(nn, "LinearCrossEntropyLoss", LinearCrossEntropyLoss))


class TrackedLayer:
    """One layer: which of its tensors is tracked, and how that becomes rows (n, d)."""

    def __init__(self, name: str, module: nn.Module, at: str, features: str) -> None:
        self.name, self.module, self.at, self.features = name, module, at, features

    @property
    def is_sharded(self) -> bool:
        """Whether ranks share its weight out among them."""
        return hasattr(getattr(self.module, "weight", None), "full_tensor")

    def tensor(self, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        """What entered the layer (`input`, or its `forward`'s first argument) or left it."""
        if self.at == "input":
            return first_tensor(_first_argument(self.module, inputs, named), self.name)
        return first_tensor(output, self.name)

    def rows(self, h: Tensor) -> tuple[Tensor, int]:
        """The rows (n, d) of a batch, and its number of inputs."""
        h = h.detach()
        if h.dim() == 0:
            raise ValueError(f"features of layer {self.name!r} must be (N, d); got a number.")
        if h.dim() <= 2:
            return h.reshape(-1, h.shape[-1]), 1 if h.dim() == 1 else len(h)
        count, weight = len(h), weight_and_bias(self.module)[0]
        whole = isinstance(weight, Tensor) and weight.dim() == 2 and self.at == "input"
        if self.features == "flatten" and not (whole and weight.shape[1] == h.shape[-1]):
            return h.reshape(count, -1), count
        if not channels_last(self.module, self.at, h):
            h = h.movedim(1, -1)
        if self.features == "mean":
            return h.flatten(1, -2).mean(dim=1), count
        return h.reshape(-1, h.shape[-1]), count


def layer_or_layers(
    module: nn.Module, layer: Any, layers: Any, at: str, features: str
) -> list[TrackedLayer]:
    """The layers of `layers`, or the one of `layer`."""
    if layers is not None:
        if layer is not None:
            raise ValueError(
                f"`layer` must not be given beside `layers`; got {describe(layer)}. Name it there."
            )
        return find_layers(module, layers, at, features, "layers")
    return [one_layer(module, layer, at, features, "layer")]


def one_layer(
    module: nn.Module, wanted: Any, at: str, features: str, argument: str
) -> TrackedLayer:
    """The layer that a name or a module names."""
    found = find_layers(module, wanted, at, features, argument)
    if len(found) > 1:
        raise ValueError(
            f"`{argument}` must name one layer; {describe(wanted)} names {len(found)}."
            + (" Pass it as `layers`." if argument == "layer" else " Pass one name.")
        )
    return found[0]


def find_layers(
    module: nn.Module, wanted: Any, at: str, features: str, argument: str
) -> list[TrackedLayer]:
    """The layers that names, modules, globs or "linear" name, each once; None for the default."""
    known, default = natural_names(module), wanted is None
    wanted = _DEFAULT if default else wanted
    if isinstance(wanted, (str, nn.Module)) or not isinstance(wanted, Iterable):
        wanted = (wanted,)
    found: dict[str, nn.Module] = {}
    for each in wanted:
        if isinstance(each, nn.Module):
            names = [name for name, other in known.items() if other is each]
            if not names:
                raise ValueError(f"`{argument}` must belong to `module`; got another module's.")
            found[names[0]] = each
        elif not isinstance(each, str):
            raise TypeError(
                f"`{argument}` must be a string, a name in `module.named_modules()`, or a module "
                f"of it; got {describe(each)}."
            )
        elif each in known and each:
            found[each] = known[each]
        elif each and _has(module, each):
            # Of a layer under two names, `named_modules` has the first alone.
            found[each] = module.get_submodule(each)
        elif each == "linear":
            found |= {name: known[name] for name in linear_names(known)}
        elif any(sign in each for sign in "*?["):
            matching = [name for name in known if name and fnmatch.fnmatchcase(name, each)]
            if not matching:
                raise _no_such_layer(argument, each, known, default)
            found |= {name: known[name] for name in matching}
        else:
            raise _no_such_layer(argument, each, known, default)
    if not found:
        raise ValueError(f"`{argument}` must name at least one layer; got none.")
    return [TrackedLayer(name, layer, at, features) for name, layer in found.items()]


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def natural_names(module: nn.Module) -> dict[str, nn.Module]:
    """`named_modules`, with a loss in the place of the linear layer in it: the loss is called."""
    known = dict(module.named_modules())
    for name, other in list(known.items()):
        if isinstance(other, LOSSES):
            known[f"{name}.linear".removeprefix(".")] = other
    return known


def linear_names(known: Mapping[str, nn.Module]) -> list[str]:
    """The layers with a weight (K, d) that features enter, each under one name."""
    names: dict[int, str] = {}
    for name, other in known.items():
        weight = weight_and_bias(other)[0]
        if isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(other, nn.Embedding):
            names.setdefault(id(other), name)
    return list(names.values())


def weight_and_bias(layer: nn.Module) -> tuple[Any, Any]:
    """Of a linear layer, or of a loss that holds one of its own; sharded ones are gathered."""
    linear = layer.linear if isinstance(layer, LOSSES) else layer
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    return _whole(weight), _whole(bias)


def _whole(parameter: Any) -> Any:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _no_such_layer(
    argument: str, layer: str, known: Mapping[str, nn.Module], default: bool
) -> ValueError:
    close = difflib.get_close_matches(layer, [name for name in known if name], 3, 0.5)
    # Most users track one of a network's last linear layers.
    last = [name for name in linear_names(known)[-2:] if name not in close]
    names = ", ".join(map(repr, close + last[::-1])) or "none"
    wanted = f"{layer!r}, the default" if default else f"{layer!r}"
    return ValueError(
        f"`{argument}` must name a layer of the module; there is no {wanted}. Near it, or last, "
        f"are {names}; see `module.named_modules()`."
    )


def _first_argument(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if inputs:
        return inputs[0]
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    # torch's own name comes first, also in `forward(target, input)`.
    for name in ("input", *parameters):
        if name in named:
            return named[name]
    return next(iter(named.values()), None)


def first_tensor(value: Any, name: str) -> Tensor:
    """The tensor itself, or the first one of a tuple, a list or a dictionary of outputs."""
    held = value
    while not isinstance(held, Tensor):
        if isinstance(held, Mapping):
            held = next(iter(held.values()), None)
        elif isinstance(held, (tuple, list)):
            held = next(iter(held), None)
        else:
            raise ValueError(
                f"a tensor must enter or leave layer {name!r}; got {type(value).__name__}."
            )
    return held


def unwrapped(module: nn.Module) -> nn.Module:
    """The model itself, without the wrapper of `torch.compile` or `DistributedDataParallel`."""
    if hasattr(module, "_orig_mod"):
        return unwrapped(module._orig_mod)  # type: ignore[arg-type]
    if isinstance(module, nn.DataParallel):
        raise ValueError(
            "`module` must not be a `DataParallel`, whose replicas come in any order; "
            "pass its `.module`, and run that."
        )
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return unwrapped(module.module)
    return module
