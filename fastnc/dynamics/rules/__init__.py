"""Update rules and schedules of `descend`: `fastnc.rules.Adam(1e-2)`, `Momentum(Cosine(...))`.

Every rule takes an `lr`: a number, a pair (lr_W, lr_H), a schedule, or a function of the epoch. One
of your own is any object with `init(W, H)` and `update(...)`, as `Rule` describes them.
"""

from fastnc.dynamics.rules.adam import Adam, AdamW
from fastnc.dynamics.rules.gradient_descent import GradientDescent
from fastnc.dynamics.rules.momentum import Momentum
from fastnc.dynamics.rules.normalized_descent import NormalizedDescent
from fastnc.dynamics.rules.rule import Rule
from fastnc.dynamics.rules.schedules import (
    Constant,
    Cosine,
    LossScaled,
    Polyak,
    Power,
    Schedule,
    Standing,
    Steps,
    WarmUp,
)
from fastnc.dynamics.rules.sharpness_aware import SharpnessAware
from fastnc.dynamics.rules.sign_descent import SignDescent
from fastnc.dynamics.rules.spectral_descent import SpectralDescent

__all__ = [
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "GradientDescent",
    "LossScaled",
    "Momentum",
    "NormalizedDescent",
    "Polyak",
    "Power",
    "Rule",
    "Schedule",
    "SharpnessAware",
    "SignDescent",
    "SpectralDescent",
    "Standing",
    "Steps",
    "WarmUp",
]
