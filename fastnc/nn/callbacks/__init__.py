"""The tracker as a callback of Lightning and the Hugging Face Trainer, and a torchmetrics metric.

Each needs its own library, and is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "LightningCollapse": ("lightning_collapse", "lightning"),
    "TrainerCollapse": ("trainer_collapse", "transformers"),
    "TorchmetricsCollapse": ("torchmetrics_collapse", "torchmetrics"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastnc.nn.callbacks' has no attribute {name!r}")
    file, library = _HOME[name]
    try:
        return getattr(importlib.import_module(f"fastnc.nn.callbacks.{file}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("fastnc"):
            raise
        raise ImportError(
            f"`{name}` needs {library}, which is not installed; run "
            "`pip install 'fastnc[integrations]'`."
        ) from None
