"""The models of Table 1 of the paper and of its literature, one small frozen dataclass each.

| model                      | paper                                     | optimum            |
|----------------------------|-------------------------------------------|--------------------|
| `ULPM`                     | this paper                                | not attained       |
| `sphere`                   | this paper, Theorem 3.3                   | simplex ETF        |
| `separation`               | this paper, (5)                           | simplex ETF        |
| `seli`                     | Thrampoulidis et al.                      | encoded labels     |
| `norm_constrained`         | Fang et al. [9]                           | simplex ETF        |
| `normalized`               | Lu & Steinerberger [24], Wojtowytsch [39] | simplex ETF        |
| `weight_decay`             | Zhu et al. [43]; Zhou et al. (smoothing)  | simplex ETF, or 0  |
| `squared_error`            | Mixon et al. [26], Tirer & Bruna          | orthogonal, or ETF |
| `imbalanced_squared_error` | Dang et al. (2023)                        | orthogonal         |
| `imbalanced`               | Fang et al. [9], Hong & Ling              | convex program     |
| `relu_features`            | Dang et al. (2024)                        | orthogonal         |
| `deep_linear`              | Dang et al. (2023), Sukenik et al.        | orthogonal, or 0   |
| `softmax_code`             | Jiang et al. (2023)                       | a code             |
"""

from fastnc.models.constrained import Normalized as normalized
from fastnc.models.constrained import NormConstrained as norm_constrained
from fastnc.models.constrained import Sphere as sphere
from fastnc.models.decayed import WeightDecay as weight_decay
from fastnc.models.deep_linear import DeepLinear as deep_linear
from fastnc.models.layer_peeled import Optimum, UnknownOptimum
from fastnc.models.least_squares import ImbalancedSquaredError as imbalanced_squared_error
from fastnc.models.least_squares import SquaredError as squared_error
from fastnc.models.minimum_norm import SELI as seli
from fastnc.models.minimum_norm import Separation as separation
from fastnc.models.softmax_code import SoftmaxCode as softmax_code
from fastnc.models.ulpm import ULPM
from fastnc.models.unequal import Imbalanced as imbalanced
from fastnc.models.unequal import ReLUFeatures as relu_features

__all__ = [
    "ULPM",
    "Optimum",
    "UnknownOptimum",
    "deep_linear",
    "imbalanced",
    "imbalanced_squared_error",
    "norm_constrained",
    "normalized",
    "relu_features",
    "seli",
    "separation",
    "softmax_code",
    "sphere",
    "squared_error",
    "weight_decay",
]

# Classes have their public names in their repr and when they are pickled.
for _name in __all__:
    _class = globals()[_name]
    _class.__name__ = _class.__qualname__ = _name
    _class.__module__ = __name__
