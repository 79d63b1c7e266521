"""A torchvision classifier whose last layer can be bypassed, and its loss by the fused kernel."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastnc._core.arrays import check_choice, check_count, check_positive
from fastnc._core.switches import check_flag, check_share
from fastnc.nn import linear_cross_entropy
from fastnc.training.loss_scaled import log_cross_entropy
from fastnc.training.small_maps import with_small_maps

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS = get_args(Precision)
Head = Literal["own", "linear"]
HEADS = get_args(Head)


def torchvision() -> Any:
    """The package torchvision; the error says how to install one that works."""
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        if error.name not in ("torchvision", None):
            raise
        raise ImportError(
            "`fastnc train` needs torchvision, which is not installed; run "
            "`pip install 'fastnc[train]'`."
        ) from None
    except RuntimeError as error:
        raise ImportError(
            f"torchvision does not fit this torch {torch.__version__} ({error}): both must be "
            "CPU builds, or both CUDA builds, of matching versions. Reinstall both together, for "
            "example with `pip install --force-reinstall torch torchvision --index-url "
            "https://download.pytorch.org/whl/cpu`."
        ) from None


# The width of torchvision's own hidden layers.
_FEATURES = 4096


class LastLayer(nn.Linear):
    """The classifier W, b; while `opened` is set its output is its input, the features h."""

    opened = False

    def forward(self, h: Tensor) -> Tensor:
        return h if self.opened else super().forward(h)


def network(
    model: str = "vgg13",
    n_classes: int = 10,
    *,
    n_channels: int = 1,
    head: Head = "own",
    feature_dim: int = _FEATURES,
    batch_norm: bool = False,
    dropout: float = 0.0,
    feature_scale: float = 1.0,
    classifier_scale: float = 1.0,
    device: str | torch.device = "cpu",
) -> Any:
    """A classifier of torchvision's with random weights, channels last, and a `LastLayer`.

    A VGG is made for small images: its convolutions' output is averaged to 512 features, images
    smaller than 32 pass the last poolings unchanged, the weights are He's normal and the biases
    zero. Every other model starts as torchvision starts it. Weights are drawn from torch's global
    generator.

    Parameters
    ----------
    model : str
        A name of `torchvision.models.list_models(module=torchvision.models)` whose last layer is
        linear.
    n_classes : int
        K.
    n_channels : int
        Of the images. Where it is not torchvision's three, the first convolution is drawn anew.
    head : "own" or "linear"
        "own": the layers before the last one are torchvision's, those of a VGG with two hidden
        layers of `feature_dim`. "linear": pooled features go straight into the last layer.
    feature_dim : int
        d, the width of a VGG's hidden layers.
    batch_norm : bool
        A VGG's variant with batch normalisation.
    dropout : float in [0, 1)
        Of every dropout layer. torchvision's own is 0.5 in a VGG; collapse needs 0.
    feature_scale, classifier_scale : float > 0
        Factors at the start: of the weight and bias of the last normalisation (or, without one,
        of the last layer but one that has a weight), and of W. Training hardly changes the balance
        of both: see `Experiment`.

    Raises
    ------
    ValueError
        There is no such model, its last layer is not linear, or it has no layer that an argument
        is about.
    """
    n_classes = check_count("n_classes", n_classes, 2)
    feature_dim = check_count("feature_dim", feature_dim, 1)
    feature_scale = check_positive("feature_scale", feature_scale)
    classifier_scale = check_positive("classifier_scale", classifier_scale)
    dropout = check_share("dropout", dropout)
    check_flag("batch_norm", batch_norm)
    check_choice("head", head, HEADS)
    name = _known(model)
    if feature_dim != _FEATURES and (head == "linear" or not name.startswith("vgg")):
        raise ValueError(
            "`feature_dim` must be left out but for a VGG with head='own', which alone has hidden "
            f"layers of that width; got {feature_dim} with `model`={model!r} and head={head!r}."
        )
    if name.startswith("vgg"):
        name = name if name.endswith("_bn") or not batch_norm else f"{name}_bn"
        net = _vgg(name, n_classes, n_channels, head, feature_dim, device)
    else:
        if batch_norm:
            raise ValueError(f"`batch_norm` must be False but for a VGG; got `model`={model!r}.")
        net = _other(name, n_classes, n_channels, head, device)
    _open(net, n_classes, model)
    dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    if dropout and not dropouts:
        raise ValueError(
            f"`dropout` must be 0 for `model`={model!r} with head={head!r}, which has no layer of "
            f"dropout; got {dropout:g}."
        )
    for module in dropouts:
        module.p = dropout
    _scale(net, feature_scale, classifier_scale)
    return with_small_maps(net.to(memory_format=torch.channels_last))


def last_layer(net: Any) -> tuple[str, LastLayer]:
    """The name and the module of the classifier."""
    return next((name, m) for name, m in net.named_modules() if isinstance(m, LastLayer))


def _known(model: str) -> str:
    models = torchvision().models
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(str(model), known, 3, 0.4) or known[:3]
        raise ValueError(
            f"`model` must be a classifier of torchvision.models; got {model!r}. The nearest names "
            f"are {', '.join(near)}."
        )
    return model


def _vgg(
    name: str, n_classes: int, n_channels: int, head: str, width: int, device: str | torch.device
) -> Any:
    # On "meta" nothing is allocated or drawn for the hidden layers that are replaced.
    with torch.device("meta"):
        net = getattr(torchvision().models, name)()
        if n_channels != 3:
            net.features[0] = nn.Conv2d(n_channels, 64, kernel_size=3, padding=1)
        net.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = [
            nn.Linear(512, width), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(),
        ]  # fmt: skip
        if head == "linear":
            net.classifier = nn.Sequential(nn.Linear(512, n_classes))
        else:
            net.classifier = nn.Sequential(*hidden, nn.Linear(width, n_classes))
    net.to_empty(device=device)
    for module in net.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return net


def _other(
    name: str, n_classes: int, n_channels: int, head: str, device: str | torch.device
) -> Any:
    # Without the auxiliary outputs of the Inceptions, which need losses of their own.
    options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"init_weights": True} if options else {}
    net = torchvision().models.get_model(name, weights=None, num_classes=n_classes, **options)
    first: Any
    last: Any
    path, first = next((p, m) for p, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != n_channels:
        new = nn.Conv2d(
            n_channels, first.out_channels, first.kernel_size, first.stride, first.padding,
            bias=first.bias is not None,
        )  # fmt: skip
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        net.set_submodule(path, new)
    *_, (path, last) = net.named_modules()
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    parent: Any = net.get_submodule(path.rpartition(".")[0])
    if head == "linear" and isinstance(parent, nn.Sequential) and isinstance(last, nn.Linear):
        first_linear = next(i for i, m in enumerate(parent) if m in linear)
        width: Any = parent[first_linear].in_features
        straight = nn.Linear(width, n_classes)
        net.set_submodule(path.rpartition(".")[0], nn.Sequential(*parent[:first_linear], straight))
    return net.to(device)


def _open(net: Any, n_classes: int, model: str) -> None:
    """Put a `LastLayer` with the same parameters in the last layer's place."""
    *_, (path, last) = net.named_modules()
    if not isinstance(last, nn.Linear) or last.out_features != n_classes:
        raise ValueError(
            f"`model` must have a linear last layer; that of {model!r} is {type(last).__name__}. "
            "Take another, as resnet18."
        )
    with torch.device("meta"):
        opened = LastLayer(last.in_features, n_classes, bias=last.bias is not None)
    opened.weight, opened.bias = last.weight, last.bias
    net.set_submodule(path, opened)


def _scale(net: Any, feature_scale: float, classifier_scale: float) -> None:
    last = last_layer(net)[1]
    before = [m for m in net.modules() if m is not last and getattr(m, "weight", None) is not None]
    norms = [m for m in before if not isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        last.weight *= classifier_scale
        for x in (norms or before)[-1].parameters(recurse=False):
            x *= feature_scale


class Pixels(nn.Module):
    """uint8 images to a network's input: on the device, normalised, channels last."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.scale, self.shift = 1.0 / (255.0 * std), -mean / std

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        return x.contiguous(memory_format=torch.channels_last)


class PeeledLoss(nn.Module):
    """Images and labels to the mean loss or its logarithm; the fused loss contains the last layer.

    One module, so that distributed wrappers and the compiler see the whole step.
    """

    def __init__(
        self, net: Any, pixels: Pixels, precision: Precision = "float32", log: bool = False
    ) -> None:
        super().__init__()
        self.net, self.pixels, self.precision, self.log = net, pixels, precision, log
        self.last = last_layer(net)[1]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.pixels(images)
        half = self.precision == "bfloat16"
        self.last.opened = True
        try:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
                h = self.net(x)
        finally:
            self.last.opened = False
        if self.log:
            return log_cross_entropy(h, self.last.weight, labels, self.last.bias)
        found: Tensor = linear_cross_entropy(
            h, self.last.weight, labels, linear_bias=self.last.bias
        )
        return found
