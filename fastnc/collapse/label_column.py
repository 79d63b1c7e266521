"""Labels from a column of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def label_column(path: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """Integers, one a line, or those of the first column that has one of `names`.

    Raises
    ------
    ValueError
        There is no such column, or something in it is no whole number.
    """
    # Spreadsheets begin a file with a mark of its encoding.
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    place, found = 0, [name.strip() for name in rows[0]]
    if len(found) > 1 or not _is_number(found[0]):
        known = [name for name in names if name in found]
        if len(found) > 1 and not known:
            raise ValueError(f"no column of it is named labels; got {', '.join(found[:12])}")
        place, rows = found.index(known[0]) if known else 0, rows[1:]
    return np.array([_label(row[place]) for row in rows], np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label(text: str) -> int:
    """A class number, which `numpy.savetxt` writes as 3.000000000000000000e+00."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError(f"labels must be whole numbers; got {text!r}")
    return int(number)
