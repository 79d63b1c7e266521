"""The paper's lemmas and theorems as functions of W, H and y.

>>> from fastnc import theory
>>> round(theory.optimal_loss(radius=4.0, n_classes=4, n_per_class=1), 4)
0.1893
"""

from fastnc.theory.aligned_flow import AlignedFlow
from fastnc.theory.curvature import SphereHessian, hessian_spectrum, tangent_curvature
from fastnc.theory.example31 import Example31
from fastnc.theory.kkt import KKT, kkt
from fastnc.theory.margin import (
    margin_decomposition,
    margin_ratio,
    margins,
    neural_collapse_margin,
)
from fastnc.theory.norm_margins import margin_ratio_max, margin_ratio_spectral
from fastnc.theory.rates import constants, exponents, fitted_exponent, limits
from fastnc.theory.residuals import Residuals
from fastnc.theory.seli import seli_distances
from fastnc.theory.sphere import along_sphere, collapsed, optimal_loss

__all__ = [
    "KKT", "AlignedFlow", "Example31", "Residuals", "SphereHessian", "along_sphere", "collapsed",
    "constants", "exponents", "fitted_exponent", "hessian_spectrum", "kkt", "limits",
    "margin_decomposition", "margin_ratio",
    "margin_ratio_max", "margin_ratio_spectral", "margins", "neural_collapse_margin",
    "optimal_loss", "seli_distances", "tangent_curvature",
]  # fmt: skip
