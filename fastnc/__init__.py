"""Neural collapse and the unconstrained layer-peeled model, fast and exact.

The paper's symbols and the names for them here:

| paper                  | here                                                       |
|------------------------|------------------------------------------------------------|
| `W` (K x d)            | `W (K, d)`, one classifier a row                           |
| `H` (d x N)            | `H (N, d)`, the transpose: one sample a row                |
| `L(W, H)`, (4)         | `loss`; `reduction="mean"` divides by N as Figure 2 needs  |
| `q_{k,i}`, `q_min`     | `margins`, `neural_collapse_margin`                        |
| `beta, epsilon, delta` | `kkt`                                                      |
| gradient flow          | `flow`; gradient descent is `descend`                      |

Names are loaded when they are first used: `import fastnc` itself loads neither numba, nor
torch, nor triton.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "loss": "objective",
    "loss_and_grads": "objective",
    "log_loss_and_grads": "objective",
    "hessian_vector_product": "objective",
    "gradient_step": "objective",
    "which": "objective",
    "ULPM": "models",
    "descend": "descent",
    "peel": "peeling",
    "sweep": "sweep",
    "flow": "flow",
    "Trajectory": "trajectory",
    "Trajectories": "trajectories",
    "Diverged": "stopping",
    "Interrupted": "stopping",
    "collapse_metrics": "metrics",
    "CollapseMetrics": "metrics",
    "ClassStatistics": "statistics",
    "ClassDeviations": "deviations",
    "margins": "margin",
    "neural_collapse_margin": "margin",
    "margin_ratio": "margin",
    "margin_decomposition": "margin",
    "kkt": "kkt",
    "tangent_curvature": "landscape",
    "solve": "optimum",
}
_MODULES = {"kernels", "models", "nn", "plots", "reference", "landscape", "training", "verify"}

__all__ = ["__version__", *_HOME, *sorted(_MODULES)]


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing `fastnc.sweep`, the file, would put it in the place of the function.
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"fastnc.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastnc.{name}")
    else:
        raise AttributeError(f"module 'fastnc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
