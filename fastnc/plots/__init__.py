"""Figures: each function takes a result and returns a matplotlib `Figure`."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "missing_margin": "margin",
    "long_horizon": "flow",
    "flow_summary": "flow",
    "findings_chart": "findings",
    "bands_summary": "bands",
    "collapse_figure": "features",
    "figure2": "collapse",
    "figure3": "training",
    "geometry": "grams",
    "layers": "depth",
    "minority_collapse": "minority",
    "peeled": "layer_peeled",
    "peeled_summary": "layer_peeled",
    "rules_compared": "rules",
    "rules_summary": "rules",
    "save": "_style",
    "summary": "collapse",
    "sweep_bands": "bands",
    "trend": "history",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastnc.plots' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastnc.plots.{_HOME[name]}"), name)
