"""FashionMNIST's four files, read and verified against the official set's statistics."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc.training.pixels import mean_and_std


class _Facts(NamedTuple):
    """Statistics of the official files, by which another set of the same sizes is recognised."""

    n_images: int
    mean: float
    std: float


FACTS = {"train": _Facts(60_000, 0.2860, 0.3530), "t10k": _Facts(10_000, 0.2868, 0.3524)}
N_CLASSES = 10
_SIDE = 28
# The facts are rounded to four decimals.
_ROUNDING = 1e-4
# The least share of images that are nearest to their own class's mean. It is two in three for
# FashionMNIST, and one in ten for images and labels that do not belong together.
_LEAST_NEAREST = 0.3


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images and labels of "train" or "t10k", verified."""
    facts = FACTS[split]
    images = _read_idx(folder, f"{split}-images-idx3-ubyte", (facts.n_images, _SIDE, _SIDE))
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", (facts.n_images,))
    counts = np.bincount(labels, minlength=N_CLASSES)
    if len(counts) != N_CLASSES or len(set(counts.tolist())) != 1:
        raise ValueError(
            f"the {split} labels in {str(folder)!r} must be {facts.n_images // N_CLASSES} of each "
            f"of {N_CLASSES} classes; got {counts.tolist()}. The file is damaged: fetch it again."
        )
    mean, std = mean_and_std(images)
    if abs(mean - facts.mean) > _ROUNDING or abs(std - facts.std) > _ROUNDING:
        raise ValueError(
            f"the {split} images in {str(folder)!r} are not FashionMNIST's: their mean and "
            f"standard deviation are {mean:.4f} and {std:.4f}, and must be {facts.mean} and "
            f"{facts.std}."
        )
    near = _nearest_own_mean(images, labels)
    if near < _LEAST_NEAREST:
        raise ValueError(
            f"the {split} images and labels in {str(folder)!r} do not belong together: {near:.0%} "
            "of the images are nearest to the mean of their own class, of FashionMNIST's two in "
            "three. One of the files is in another order: fetch both again."
        )
    return images, labels


def _nearest_own_mean(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """The share of images, of some ten thousand, that are nearest to the mean of their own class.

    The own class's mean is that of the other images, which is n / (n - 1) times as far.
    """
    some = slice(None, None, max(1, len(images) // 10_000))
    X, y = images[some].reshape(-1, images[0].size).astype(np.float32), labels[some]
    means = np.stack([X[y == k].mean(axis=0) for k in range(N_CLASSES)])
    apart = (X**2).sum(axis=1)[:, None] - 2.0 * (X @ means.T) + (means**2).sum(axis=1)
    n = np.bincount(y, minlength=N_CLASSES)[y]
    apart[np.arange(len(y)), y] *= (n / np.maximum(n - 1, 1)) ** 2
    return float((apart.argmin(axis=1) == y).mean())


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of an IDX file, compressed or not."""
    plain, packed = folder / name, folder / (name + ".gz")
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    # One byte more than needed: a longer file, or one that expands, is not read to its end.
    most = len(header) + int(np.prod(shape)) + 1
    if plain.is_file():
        path = plain
        with open(plain, "rb") as file:
            content = file.read(most)
    elif packed.is_file():
        path = packed
        try:
            with gzip.open(packed) as file:
                content = file.read(most)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{str(packed)!r} is damaged ({error}): fetch it again.") from None
    else:
        raise FileNotFoundError(
            f"FashionMNIST is not in {str(folder)!r}: there is no {name} or {name}.gz. Give "
            "`root`, the folder that holds FashionMNIST/raw, or let it be fetched with "
            "`download=True`."
        )
    if len(content) != most - 1 or not content.startswith(header):
        more = " or more" if len(content) == most else ""
        raise ValueError(
            f"{str(path)!r} must hold {' x '.join(map(str, shape))} bytes after a header of "
            f"{len(header)}; got {len(content)} bytes{more} that begin with {content[:8].hex()}. "
            "The file is damaged or of another set: fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
