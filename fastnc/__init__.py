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
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "loss": "objective",
    "loss_and_grads": "objective",
    "log_loss_and_grads": "objective",
    "hessian_vector_product": "objective",
    "gradient_step": "objective",
    "which": "objective",
    "plan": "objective",
    "ULPM": "models",
    "descend": "dynamics.descent",
    "peel": "dynamics.peel",
    "sweep": "dynamics.sweep",
    "flow": "dynamics.flow",
    "Trajectory": "dynamics.trajectory",
    "Trajectories": "dynamics.trajectories",
    "Diverged": "_core.interrupts",
    "Interrupted": "_core.interrupts",
    "collapse_metrics": "collapse.measurement",
    "CollapseMetrics": "collapse.metrics",
    "nc5": "collapse.out_of_distribution",
    "regression_metrics": "collapse.regression",
    "RegressionMetrics": "collapse.regression",
    "one_vs_rest_distance": "collapse.codes",
    "History": "collapse.history",
    "ClassStatistics": "collapse.statistics",
    "ClassDeviations": "collapse.deviations",
    "margins": "theory.margin",
    "neural_collapse_margin": "theory.margin",
    "margin_ratio": "theory.margin",
    "margin_decomposition": "theory.margin",
    "kkt": "theory.kkt",
    "tangent_curvature": "theory.curvature",
    "hessian_spectrum": "theory.curvature",
    "solve": "models.solve",
}
# Under the name that a user types, the module that it is.
_MODULES = {
    "kernels": "kernels",
    "landscape": "theory",
    "models": "models",
    "nn": "nn",
    "plots": "plots",
    "reference": "reference",
    "rules": "dynamics.rules",
    "theory": "theory",
    "training": "training",
    "verify": "paper.verify",
}

__all__ = ["__version__", *_HOME, *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"fastnc.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastnc.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'fastnc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
