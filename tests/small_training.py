"""A small network and a small data set that stand where VGG-13 and FashionMNIST stand.

`python tests/small_training.py train ...` is `fastnc train` with both in place.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastnc.training import data, idx_files
from fastnc.training.network import LastLayer

SIDE = 6


def network(
    model="vgg13", n_classes=10, *, n_channels=1, head="own", feature_dim=8, batch_norm=False,
    dropout=0.0, feature_scale=1.0, classifier_scale=1.0, device=None,
):  # fmt: skip
    """The layout of `fastnc.training.network.network`, a thousand times smaller."""
    norm = [nn.BatchNorm2d(6)] if batch_norm else []
    conv = nn.Conv2d(n_channels, 6, 3, padding=1)
    net = nn.Module()
    net.features = nn.Sequential(conv, *norm, nn.ReLU(), nn.MaxPool2d(2))
    net.avgpool = nn.AdaptiveAvgPool2d(3)
    hidden = [
        nn.Linear(54, feature_dim), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Dropout(dropout),
    ]  # fmt: skip
    linear = head == "linear"
    last = LastLayer(54 if linear else feature_dim, n_classes)
    net.classifier = nn.Sequential(*([] if linear else hidden), last)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        last.weight *= classifier_scale
        (norm or [conv])[0].weight *= feature_scale
    net.forward = lambda x: net.classifier(torch.flatten(net.avgpool(net.features(x)), 1))
    return net.to(device)


def images(n, seed, n_classes=10):
    """(n, SIDE, SIDE) bytes and labels that take turns: a pattern a class, and noise."""
    patterns = np.random.default_rng(0).integers(40, 216, (n_classes, SIDE, SIDE))
    labels = (np.arange(n) % n_classes).astype(np.uint8)
    noise = np.random.default_rng(seed).integers(-40, 40, (n, SIDE, SIDE))
    return (patterns[labels] + noise).astype(np.uint8), labels


def dataset(n=60, n_test=20, n_classes=10):
    """A `Dataset` of such images."""
    parts = []
    for size, seed in ((n, 1), (n_test, 2)):
        x, y = images(size, seed, n_classes)
        parts += [torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y.astype(np.int64))]
    scaled = parts[0].double() / 255.0
    return data.Dataset(*parts, float(scaled.mean()), float(scaled.std()), n_classes)


def write_idx(path, array):
    """An IDX file of bytes, packed where the name says so."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_files(root, packed=True):
    """`root/FashionMNIST/raw` with 60 and 20 images; returns the facts that describe them."""
    folder = Path(root) / "FashionMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for split, n, seed in (("train", 60, 1), ("t10k", 20, 2)):
        x, y = images(n, seed)
        end = ".gz" if packed else ""
        write_idx(folder / f"{split}-images-idx3-ubyte{end}", x)
        write_idx(folder / f"{split}-labels-idx1-ubyte{end}", y)
    return folder


def facts():
    """What `fastnc.training.idx_files.FACTS` must be for the files of `write_files`."""
    found = {}
    for split, n, seed in (("train", 60, 1), ("t10k", 20, 2)):
        x, _ = images(n, seed)
        found[split] = idx_files._Facts(n, float(x.mean() / 255.0), float(x.std() / 255.0))
    return found


def put_in_place(patch=setattr):
    """Let `fastnc train` take the small network and files of `write_files`."""
    from fastnc.training import stepper

    patch(stepper, "network", network)
    patch(idx_files, "FACTS", facts())
    patch(idx_files, "_SIDE", SIDE)


if __name__ == "__main__":
    from fastnc.cli import main

    put_in_place()
    sys.exit(main())
