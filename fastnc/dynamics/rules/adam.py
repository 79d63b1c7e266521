"""Adam, and AdamW with its decoupled weight decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastnc._core import arrays
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn, check_fraction, decayed


@dataclass(frozen=True)
class Adam(BuiltIn):
    """`theta -= lr m' / (sqrt(v') + eps)`, m' and v' the corrected means of g and of g^2.

    As `torch.optim.Adam`: `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`, m' = m / (1 -
    b1^t), v' = v / (1 - b2^t), `weight_decay` joins the gradient. While gradients are large beside
    `eps`, and always for `eps=0`, which is computed in the log domain, the direction tends to the
    l_inf margin (`margin_ratio_max`); below `eps` it is gradient descent's.
    """

    lr: Any = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(f"`betas` must be a pair (beta1, beta2); got {self.betas!r}.")
        betas = tuple(check_fraction("betas", beta) for beta in self.betas)
        object.__setattr__(self, "betas", betas)
        arrays.keep_checked(self, arrays.check_at_least_zero, "eps", "weight_decay")

    @property
    def scale_free(self) -> bool:  # type: ignore[override]
        """Whether the steps do not depend on the scale of the gradients."""
        return self.eps == 0.0 and self.coupled == 0.0

    @property
    def coupled(self) -> float:
        """The decay that is added to the gradient."""
        return self.weight_decay

    def init(self, *factors: Array) -> dict[str, Array]:
        """m = v = 0 for each factor."""
        return {f"{name}{i}": np.zeros_like(x) for i, x in enumerate(factors) for name in "mv"}

    def rescale(self, state: dict[str, Array], ratio: float) -> None:
        """m times `ratio`, v times its square."""
        for name, x in state.items():
            x *= x.dtype.type(ratio if name[0] == "m" else ratio**2)

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr m' / (sqrt(v') + eps)`, m and v renewed."""
        b1, b2 = self.betas
        first, second = 1.0 - b1**step, math.sqrt(1.0 - b2**step)
        changes = []
        for i, g in enumerate(decayed(gradients, factors, self.coupled)):
            m, v = state[f"m{i}"], state[f"v{i}"]
            kind = m.dtype.type
            m *= kind(b1)
            m += kind(1.0 - b1) * g
            v *= kind(b2)
            v += kind(1.0 - b2) * g * g
            root = np.sqrt(v)
            root *= kind(1.0 / second)
            root += kind(self.eps)
            # An entry that never had a gradient keeps its value.
            np.divide(m, root, out=root, where=root > 0.0)
            changes.append(root * kind(-rates[i] / first))
        return tuple(changes)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with `theta <- (1 - lr weight_decay) theta` beside its step: decoupled decay.

    The limit of every entry is at most `1 / weight_decay`: with a constant `lr`, W and H tend to
    the optimum in the l_inf ball of that radius while its gradients are large beside `eps`, and
    always for `eps=0`. Gradients below `eps` leave them inside the ball.
    """

    weight_decay: float = 1e-2

    @property
    def coupled(self) -> float:
        """0: the decay is not added to the gradient."""
        return 0.0

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """Adam's change less `lr weight_decay theta`."""
        changes = super().update(factors, gradients, state, rates, step)
        return tuple(
            c - x.dtype.type(lr * self.weight_decay) * x
            for c, x, lr in zip(changes, factors, rates, strict=True)
        )
