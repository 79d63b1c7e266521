"""The metrics of several layers, side by side."""

from __future__ import annotations

from typing import Any

from fastnc._core.results import frames_of
from fastnc.collapse.metrics import CollapseMetrics

COLUMNS = (
    "nc1", "cdnv", "within_class", "equinorm_features", "equiangular_features",
    "nearest_mean_accuracy", "effective_rank",
)  # fmt: skip


class LayerTable(dict[str, CollapseMetrics]):
    """Layer by layer, in the order in which they were named: a dictionary that prints as a table.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> from fastnc.collapse.layer_table import LayerTable
    >>> H, y = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]]), [0, 0, 1, 1]
    >>> table = LayerTable(body=fastnc.collapse_metrics(H, np.array(y)))
    >>> list(table.flat("nc/"))[0]
    'nc/body/equinorm_features'
    """

    def flat(self, prefix: str = "") -> dict[str, float]:
        """All metrics that are known, under `prefix + layer + "/" + name`."""
        return {k: v for name, m in self.items() for k, v in m.flat(f"{prefix}{name}/").items()}

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary a layer: its name, its sizes and its metrics."""
        return [{"layer": name, **m.counts(), **m.as_dict()} for name, m in self.items()]

    def to_pandas(self) -> Any:
        """A data frame with a row a layer; needs pandas."""
        columns = None if self else ["layer"]
        return frames_of("pandas").DataFrame(self.rows(), columns=columns).set_index("layer")

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        width = max(width, len("layer")) + 2
        further = ("nc5",) if any(m.nc5 is not None for m in self.values()) else ()
        columns = COLUMNS + further
        wide = [max(len(name), 10) + 2 for name in columns]
        heads = "".join(f"{name:>{w}}" for name, w in zip(columns, wide, strict=True))
        lines = [f"{'layer':<{width}}{'d':>8}{heads}"]
        for name, m in self.items():
            values = (getattr(m, column) for column in columns)
            cells = ("-" if value is None else f"{value:.4g}" for value in values)
            shown = "".join(f"{cell:>{w}}" for cell, w in zip(cells, wide, strict=True))
            lines.append(f"{name:<{width}}{m.dim:>8}{shown}")
        return "\n".join(lines)
