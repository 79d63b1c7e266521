"""The metrics of a network's layers at some epochs, in one file of JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from fastnc._core.files import FOREIGN, atomic_write
from fastnc.collapse.layer_table import LayerTable
from fastnc.collapse.metrics import CollapseMetrics

FILE = "depth.json"


def save(folder: Path, tables: Mapping[int, LayerTable]) -> Path:
    """Write the tables by epoch."""
    content = {
        epoch: {layer: dataclasses.asdict(m) for layer, m in table.items()}
        for epoch, table in tables.items()
    }
    text = json.dumps(content, indent=1).encode()
    return atomic_write(folder / FILE, lambda file: file.write(text))


def load(folder: Path) -> dict[int, LayerTable]:
    """The tables by epoch, none where there is no file.

    Raises
    ------
    ValueError
        The file is not one that `save` wrote.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        return {
            int(epoch): LayerTable({layer: CollapseMetrics(**m) for layer, m in table.items()})
            for epoch, table in content.items()
        }
    except (*FOREIGN, AttributeError):
        raise ValueError(f"{str(path)!r} is not one that fastnc wrote. Remove it.") from None
