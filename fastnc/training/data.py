"""FashionMNIST from its four files: read, verified and resized; downloaded only when asked."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class _Facts(NamedTuple):
    """What the official files hold, to tell them from another set of the same sizes."""

    n_images: int
    mean: float
    std: float


FACTS = {"train": _Facts(60_000, 0.2860, 0.3530), "t10k": _Facts(10_000, 0.2868, 0.3524)}
N_CLASSES = 10
_SIDE = 28
# Images that are resized at once.
_ROWS = 4096
# The facts are rounded to four decimals.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images (N, 1, S, S) in uint8, labels (N,) in int64.

    `mean` and `std` are the training images', on the scale 0..1, by which a network's input is
    normalised.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float
    n_classes: int = N_CLASSES

    def to(self, device: torch.device) -> Dataset:
        """The same on another device."""
        parts = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})

    def fingerprint(self) -> str:
        """A hash of every image and label: two runs on the same data share it."""
        digest = hashlib.sha256()
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
    """FashionMNIST from `root/FashionMNIST/raw`, as torchvision lays it out.

    Parameters
    ----------
    root : path
        Holds `FashionMNIST/raw` with the four official files, packed (`.gz`) or not.
    image_size : int >= 1
        Images are resized from 28 x 28 once, bilinearly with antialiasing, and kept in uint8.
    subset : int >= 10, optional
        That many training images, evenly over the classes, the first of each in the file's
        order; and as many test images, if there are.
    download : bool
        Let torchvision fetch the files first, where they are missing.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message says where it was sought.
    ValueError
        A file is not FashionMNIST's: its size, header, statistics or class sizes differ.
    """
    import torch

    check_count("image_size", image_size, 1)
    if subset is not None:
        check_count("subset", subset, N_CLASSES)
        if subset > FACTS["train"].n_images:
            raise ValueError(
                f"`subset` must be at most the {FACTS['train'].n_images} training images; "
                f"got {subset}."
            )
    folder = Path(root) / "FashionMNIST" / "raw"
    if download:
        _download(root)
    parts: list[Tensor] = []
    for split in ("train", "t10k"):
        images, labels = _read_split(folder, split)
        if subset is not None:
            rows = _evenly(labels, min(subset, len(labels)))
            images, labels = images[rows], labels[rows]
        parts += [_resized(images, image_size), torch.from_numpy(labels.astype(np.int64))]
    return Dataset(parts[0], parts[1], parts[2], parts[3], *_mean_and_std(parts[0].numpy()))


def _mean_and_std(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Of all pixels on the scale 0..1, from how often each of the 256 values occurs."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(256) / 255.0
    mean = float(counts @ values / images.size)
    return mean, float(np.sqrt(counts @ (values - mean) ** 2 / images.size))


def _download(root: str | os.PathLike[str]) -> None:
    from fastnc.training.network import torchvision

    torchvision().datasets.FashionMNIST(str(root), train=True, download=True)


def _read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    facts = FACTS[split]
    images = _read_idx(folder, f"{split}-images-idx3-ubyte", (facts.n_images, _SIDE, _SIDE))
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", (facts.n_images,))
    counts = np.bincount(labels, minlength=N_CLASSES)
    if len(counts) != N_CLASSES or len(set(counts.tolist())) != 1:
        raise ValueError(
            f"the {split} labels in {str(folder)!r} must be {facts.n_images // N_CLASSES} of each "
            f"of {N_CLASSES} classes; got {counts.tolist()}. The file is damaged: fetch it again."
        )
    mean, std = _mean_and_std(images)
    if abs(mean - facts.mean) > _ROUNDING or abs(std - facts.std) > _ROUNDING:
        raise ValueError(
            f"the {split} images in {str(folder)!r} are not FashionMNIST's: their mean and "
            f"standard deviation are {mean:.4f} and {std:.4f}, and must be {facts.mean} and "
            f"{facts.std}."
        )
    return images, labels


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of an IDX file, plain or packed."""
    plain, packed = folder / name, folder / (name + ".gz")
    if plain.is_file():
        path, content = plain, plain.read_bytes()
    elif packed.is_file():
        path = packed
        try:
            content = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{str(packed)!r} is damaged ({error}): fetch it again.") from None
    else:
        raise FileNotFoundError(
            f"FashionMNIST is not in {str(folder)!r}: there is no {name} or {name}.gz. Give "
            "`--data`, the folder that holds FashionMNIST/raw, or let it be fetched with "
            "`--download`."
        )
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    if len(content) != len(header) + int(np.prod(shape)) or not content.startswith(header):
        raise ValueError(
            f"{str(path)!r} must hold {' x '.join(map(str, shape))} bytes after a header of "
            f"{len(header)}; got {len(content)} bytes that begin with {content[:8].hex()}. The "
            "file is damaged or of another set: fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _evenly(labels: NDArray[np.uint8], n: int) -> NDArray[np.intp]:
    """The first `n` rows when the classes take turns, in the file's order."""
    turn = np.empty(len(labels), np.intp)
    for k in range(N_CLASSES):
        mine = labels == k
        turn[mine] = np.arange(mine.sum())
    return np.sort(np.lexsort((labels, turn))[:n])


def _resized(images: NDArray[np.uint8], size: int) -> Tensor:
    import torch

    stack = torch.from_numpy(images.copy()).unsqueeze(1)
    if size == _SIDE:
        return stack
    resized = torch.empty(len(stack), 1, size, size, dtype=torch.uint8)
    for low in range(0, len(stack), _ROWS):
        part = torch.nn.functional.interpolate(
            stack[low : low + _ROWS].float(), (size, size), mode="bilinear", antialias=True
        )
        resized[low : low + _ROWS] = part.round_().clamp_(0, 255)
    return resized
