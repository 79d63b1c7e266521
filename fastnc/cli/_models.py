"""The options of the unconstrained model: sizes, or the samples of each class, and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastnc.cli._typed import typed

CLASS_SIZES = "Samples of each class, as 100,100,1, in the place of --n-classes and --n-per-class."
LOSS = "Of a sample's logits; focal has gamma 2, smoothed a tenth."
NOISE = "Standard deviation of Gaussian noise in every entry of each gradient."
Loss = Literal["cross-entropy", "squared", "focal", "smoothed"]


def model_of(n_classes: int, n_per_class: int, dim: int, class_sizes: str | None, loss: str) -> Any:
    """The model of these options.

    Raises
    ------
    ValueError
        Class sizes that are no sizes, or that contradict `n_classes` or `n_per_class`.
    """
    import numpy as np

    from fastnc.models import ULPM

    if class_sizes is None:
        return ULPM(n_classes, n_per_class, dim, loss=loss)
    sizes = sizes_of(class_sizes)
    classes_said = n_classes != len(sizes) and (n_classes != 5 or typed("n_classes"))
    if classes_said or n_per_class != 10 or typed("n_per_class"):
        raise ValueError(
            f"`--class-sizes` {class_sizes} says how many classes and samples there are; leave "
            "out --n-classes and --n-per-class."
        )
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return ULPM(len(sizes), dim=dim, labels=labels, loss=loss)


def sizes_of(text: str) -> list[int]:
    """The samples of each class, as `100,100,1` says them."""
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or min(sizes) < 0 or not any(sizes):
        raise ValueError(
            "`--class-sizes` must be the samples of at least 2 classes, as 100,100,1; got "
            f"{text!r}."
        )
    return sizes


def check_different(**options: Sequence[Any] | None) -> None:
    """No value of an option may be given twice: its runs would be counted twice, as two starts."""
    for name, values in options.items():
        for i, value in enumerate(values or ()):
            if value in (values or ())[:i]:
                raise ValueError(
                    f"`{name}` must have different values; got {value} twice. Leave out one."
                )
