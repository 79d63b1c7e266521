"""Data sets that torchvision reads, and folders of images, as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.training.network import torchvision
from fastnc.training.pixels import resized

# Training and test images (N, C, S, S) and labels.
Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Splits = tuple[Split, Split]

TORCHVISION = ("MNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN")
_TEST_FOLDERS = ("test", "val")


def of_torchvision(root: Path, name: str, download: bool = False) -> Splits:
    """One of `TORCHVISION`, which checks the check sums of its files."""
    kind = getattr(torchvision().datasets, name)
    try:
        if name == "SVHN":
            sets = [kind(str(root), split=s, download=download) for s in ("train", "test")]
        else:
            sets = [kind(str(root), train=t, download=download) for t in (True, False)]
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{name} is not in {str(root)!r} ({str(error).splitlines()[0]}). Give `root`, "
            "torchvision's, or let it be fetched with `download=True`."
        ) from None
    train, test = (_arrays(found) for found in sets)
    return train, test


def download(root: Path, name: str) -> None:
    """Let torchvision download missing files."""
    if name == "ImageFolder":
        raise ValueError("`download` must be False for an ImageFolder, which has no address.")
    if name == "FashionMNIST":
        torchvision().datasets.FashionMNIST(str(root), train=True, download=True)
    else:
        of_torchvision(root, name, download=True)


def _arrays(found: Any) -> Split:
    images = np.asarray(found.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    labels = found.labels if hasattr(found, "labels") else found.targets
    return images, np.asarray(labels, dtype=np.int64)


def image_folder(root: Path, image_size: int) -> Splits:
    """`root/train/<class>/*` and `root/test/<class>/*`, each image resized as it is read.

    Images are grey if all of them are, else in three channels. The classes are the folders of
    `train`, in the order of their names.
    """
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), root / "test")
    for folder in (root / "train", test):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"an ImageFolder must have a folder `train` and a folder `test` or `val`; there is "
                f"no {str(folder)!r}."
            )
    datasets = torchvision().datasets
    try:
        sets = [datasets.ImageFolder(str(folder)) for folder in (root / "train", test)]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{str(root)!r} must hold a folder of images for each class: {error}."
        ) from None
    if sets[0].classes != sets[1].classes:
        raise ValueError(
            f"`train` and {test.name!r} in {str(root)!r} must have the same classes; only one of "
            f"them has {sorted(set(sets[0].classes) ^ set(sets[1].classes))}."
        )
    splits = [_read_images(found, image_size) for found in sets]
    if splits[0][0].shape[1] != splits[1][0].shape[1]:
        splits = [(np.broadcast_to(x, (len(x), 3, *x.shape[2:])), y) for x, y in splits]
    return splits[0], splits[1]


def _read_images(found: Any, size: int) -> Split:
    # torchvision's own loader makes three channels of a grey image.
    found.loader = _pixels
    images = [image for image, _ in found]
    grey = all(image.ndim == 2 for image in images)
    stack = np.empty((len(images), 1 if grey else 3, size, size), np.uint8)
    for i, image in enumerate(images):
        channels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        stack[i] = resized(channels[None], size)[0].numpy()
    return stack, np.asarray(found.targets, dtype=np.int64)


def _pixels(path: str) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))
