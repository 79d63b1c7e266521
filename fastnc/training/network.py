"""VGG-13 with two hidden layers on top of 512 features, and its loss with the last layer peeled."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastnc._core.arrays import check_count
from fastnc.nn import linear_cross_entropy

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS = ("float32", "tf32", "bfloat16")
LAST_LAYER = "classifier.6"


def torchvision() -> Any:
    """The package torchvision, or one sentence on how to get one that works."""
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


def vgg13(
    n_classes: int = 10,
    feature_dim: int = 4096,
    *,
    batch_norm: bool = False,
    dropout: float = 0.0,
    device: str | torch.device = "cpu",
) -> Any:
    """torchvision's VGG-13 for small grey images.

    The convolutions are torchvision's, with one input channel (which is what repeating the
    channel three times amounts to). Their output is averaged to 512 features; two hidden layers
    of `feature_dim` follow, and the output of the second is the h of the paper: what enters
    `"classifier.6"`, whose weight is W. Images smaller than 32 pass the last poolings unchanged.

    Weights are drawn from torch's global generator: He's normal initialisation, zero biases.

    Parameters
    ----------
    n_classes, feature_dim : int
        K and d.
    batch_norm : bool
        torchvision's `vgg13_bn` instead of `vgg13`.
    dropout : float in [0, 1)
        After each hidden layer. torchvision's own is 0.5; the collapse wants none.
    """
    check_count("n_classes", n_classes, 2)
    check_count("feature_dim", feature_dim, 1)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` must lie in [0, 1); got {dropout!r}.")
    models = torchvision().models
    # On "meta" nothing is allocated or drawn for the hidden layers that are replaced.
    with torch.device("meta"):
        net = models.vgg13_bn() if batch_norm else models.vgg13()
        net.features[0] = nn.Conv2d(1, 64, kernel_size=3, padding=1)
        net.avgpool = nn.AdaptiveAvgPool2d(1)
        net.classifier = nn.Sequential(
            nn.Linear(512, feature_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(feature_dim, feature_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(feature_dim, n_classes),
        )
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
    return net.to(memory_format=torch.channels_last)


class Pixels(nn.Module):
    """uint8 images to a network's input: on the device, normalised, channels last."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.scale, self.shift = 1.0 / (255.0 * std), -mean / std

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        return x.contiguous(memory_format=torch.channels_last)


class PeeledLoss(nn.Module):
    """Images and labels to the mean loss, with the last layer inside the fused loss.

    One module, so that distributed wrappers and the compiler see the whole step.
    """

    def __init__(self, net: Any, pixels: Pixels, precision: Precision = "float32") -> None:
        super().__init__()
        self.net, self.pixels, self.precision = net, pixels, precision

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.pixels(images)
        half = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            h = torch.flatten(self.net.avgpool(self.net.features(x)), 1)
            for layer in self.net.classifier[:-1]:
                h = layer(h)
        last = self.net.classifier[-1]
        return linear_cross_entropy(h, last.weight, labels, linear_bias=last.bias)
