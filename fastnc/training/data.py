"""Images and labels in memory, resized once, from a data set of torchvision's on the disk."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import (
    check_count,
    check_finite_number,
    check_labels,
    check_positive,
    is_torch,
    keep_checked,
)
from fastnc._core.files import check_path
from fastnc._core.switches import check_flag, check_share
from fastnc.training import idx_files, image_sets
from fastnc.training.pixels import mean_and_std, resized

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images (N, C, S, S) in uint8, labels (N,) in int64.

    `mean` and `std`, by which a network's input is normalised, are those of the training images,
    of all channels together, on the scale 0..1. `title` says what images they are.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float
    n_classes: int = 10
    title: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise TypeError(f"`title` must be a text; got {type(self.title).__name__}.")
        keep_checked(self, check_count, "n_classes", least=2)
        keep_checked(self, check_finite_number, "mean")
        keep_checked(self, check_positive, "std")
        for split in ("train", "test"):
            self._check_images(f"{split}_images")
            name, n = f"{split}_labels", len(getattr(self, f"{split}_images"))
            labels = getattr(self, name)
            if not is_torch(labels):
                raise TypeError(f"`{name}` must be a torch tensor; got {type(labels).__name__}.")
            check_labels(labels, n, self.n_classes, name, "give a larger `n_classes`")
        new = set(self.test_labels.tolist()) - set(self.train_labels.tolist())
        if new:
            raise ValueError(
                "`test_labels` must be of classes that are trained, as test images are measured "
                f"about training means; got class {min(new)}, of which `train_labels` has none."
            )

    def _check_images(self, name: str) -> None:
        images, like = getattr(self, name), self.train_images
        if str(getattr(images, "dtype", "")) != "torch.uint8":
            got = f"{type(images).__name__} of {getattr(images, 'dtype', 'no dtype')}"
            raise TypeError(
                f"`{name}` must be a torch tensor of bytes, 0..255; got {got}. Convert images in "
                "0..1 by `(255 * images).round().to(torch.uint8)`."
            )
        if images.ndim != 4 or images.shape[1:] != like.shape[1:] or not len(images):
            raise ValueError(
                f"`{name}` must be (N, channels, side, side), one or more, of one size with those "
                f"of training; got shape {tuple(images.shape)}."
            )

    def to(self, device: torch.device) -> Dataset:
        """The same on another device."""
        parts = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def fingerprint(self) -> str:
        """A hash of every image and label, and of what normalises them: of the same input."""
        digest = hashlib.sha256(repr((self.mean, self.std)).encode())
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def fashion_mnist(
    root: str | os.PathLike[str],
    *,
    image_size: int = 32,
    subset: int | None = None,
    download: bool = False,
) -> Dataset:
    """FashionMNIST from `root/FashionMNIST/raw`: `load_data` with its defaults."""
    return load_data(root, image_size=image_size, subset=subset, download=download)


def load_data(
    root: str | os.PathLike[str],
    name: str = "FashionMNIST",
    *,
    image_size: int = 32,
    subset: int | None = None,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    seed: int = 0,
    download: bool = False,
) -> Dataset:
    """A data set of torchvision's from the disk, whole in memory.

    Parameters
    ----------
    root : path
        torchvision's root. FashionMNIST's four official files, compressed (`.gz`) or not, are in
        `root/FashionMNIST/raw`. Of an ImageFolder, `root/train` and `root/test` (or `val`) hold
        a folder of images for each class.
    name : str
        "FashionMNIST", "MNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN" or "ImageFolder".
    image_size : int >= 1
        Images are resized once, bilinearly with antialiasing, and kept in uint8.
    subset : int, at least the number of classes, optional
        That many training images, evenly over the classes, the first of each in the file's
        order; and as many test images, or all if there are fewer.
    label_noise : float in [0, 1)
        The share of training labels that are replaced, each by one of the other classes with
        equal chances.
    imbalance : float >= 1
        The largest training class over the smallest: class k keeps n imbalance^(-k/(K-1)) images,
        the first of each, with the largest n for which every class has as many.
    seed : int
        Of the label noise.
    download : bool
        Let torchvision download missing files first.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names the folder.
    ValueError
        There is no such data set, or an argument makes no sense, or a file is not
        FashionMNIST's: its size, header, statistics or class sizes differ.
    """
    import torch

    image_size = check_count("image_size", image_size, 1)
    check_path("root", root)
    label_noise = check_share("label_noise", label_noise)
    if not (isinstance(imbalance, Real) and 1.0 <= imbalance < np.inf):
        raise ValueError(f"`imbalance` must be a number of at least 1; got {imbalance!r}.")
    seed = check_count("seed", seed, 0)
    check_flag("download", download)
    read = _reader(name)
    if subset is not None:
        subset = check_count("subset", subset, 2)
    if download:
        image_sets.download(Path(root), name)
    splits = read(Path(root), image_size)
    n_classes = len(np.unique(splits[0][1]))
    if subset is not None:
        subset = check_count("subset", subset, n_classes)
        if subset > len(splits[0][1]):
            raise ValueError(
                f"`subset` must be at most the {len(splits[0][1])} training images; got {subset}."
            )
    parts: list[Tensor] = []
    for split, (images, labels) in enumerate(splits):
        rows = np.arange(len(labels))
        if subset is not None:
            rows = _evenly(labels, min(subset, len(labels)))
        if split == 0:
            rows = rows[_long_tailed(labels[rows], n_classes, imbalance)]
            labels = labels.copy()
            labels[rows] = _with_noise(labels[rows], n_classes, label_noise, seed)
        parts += [resized(images[rows], image_size), torch.from_numpy(labels[rows])]
    mean, std = mean_and_std(parts[0].numpy())
    title = name
    if label_noise:
        title += f", label noise {label_noise:g}"
    if imbalance > 1.0:
        title += f", imbalance {imbalance:g}"
    return Dataset(parts[0], parts[1], parts[2], parts[3], mean, std, n_classes, title)


Read = Callable[[Path, int], image_sets.Splits]


def _reader(name: str) -> Read:
    known = ("FashionMNIST", *image_sets.TORCHVISION, "ImageFolder")
    match name:
        case "FashionMNIST":
            return _fashion_mnist
        case "ImageFolder":
            return image_sets.image_folder
        case _ if name in known:
            return lambda root, size: image_sets.of_torchvision(root, name)
        case _:
            near = difflib.get_close_matches(str(name), known, 1, 0.3) or known[:1]
            raise ValueError(
                f"the data set's `name` must be one of {', '.join(known)}; got {name!r}. The "
                f"nearest name is {near[0]}."
            )


def _fashion_mnist(root: Path, image_size: int) -> image_sets.Splits:
    folder = root / "FashionMNIST" / "raw"
    train, test = (idx_files.read_split(folder, split) for split in ("train", "t10k"))
    return (
        (train[0][:, None], train[1].astype(np.int64)),
        (test[0][:, None], test[1].astype(np.int64)),
    )


def _evenly(labels: NDArray[np.int64], n: int) -> NDArray[np.intp]:
    """The first `n` rows when the classes take turns, in the file's order."""
    return np.sort(np.lexsort((labels, _turns(labels)))[:n])


def _turns(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """For each sample the number of earlier samples of its class."""
    turn = np.empty(len(labels), np.intp)
    for k in np.unique(labels):
        mine = labels == k
        turn[mine] = np.arange(mine.sum())
    return turn


def _long_tailed(labels: NDArray[np.int64], n_classes: int, ratio: float) -> NDArray[np.intp]:
    if ratio == 1.0:
        return np.arange(len(labels))
    shares = ratio ** (-np.arange(n_classes) / (n_classes - 1))
    most = (np.bincount(labels, minlength=n_classes) / shares).min()
    sizes = np.round(most * shares)
    if sizes[-1] < 1:
        raise ValueError(
            f"`imbalance` must leave an image in every class, of {most:g} in the first; got "
            f"{ratio:g}."
        )
    return np.flatnonzero(_turns(labels) < sizes[labels])


def _with_noise(
    labels: NDArray[np.int64], n_classes: int, share: float, seed: int
) -> NDArray[np.int64]:
    rng = np.random.default_rng((seed, len(labels)))
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + rng.integers(1, n_classes, len(wrong))) % n_classes
    return noisy
