"""Figure 2 of the paper: gradient descent on the unconstrained layer-peeled model collapses.

K = 5 classes of n = 10 samples in d = 20 dimensions, learning rate 5 on the mean loss, 1e5
epochs (section 4). Run it: `python examples/figure2.py`; it takes about a second.
"""

from pathlib import Path

import numpy as np

import fastnc
from fastnc.plots import figure2, save

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
    run = fastnc.descend(model, lr=5.0, epochs=100_000, seed=0)
    RESULTS.mkdir(exist_ok=True)
    print("written:", *save(figure2(run), RESULTS / "figure2"))

    # The paper: every quantity falls, the axes being log log t and log.
    late = run["epoch"] >= 100
    x = np.log(np.log(run["epoch"][late]))
    for name in (
        "equinorm_features",
        "equinorm_classifier",
        "within_class",
        "equiangular_features",
        "equiangular_classifier",
        "self_duality",
    ):
        values = run[name]
        slope = np.polyfit(x, np.log(values[late]), 1)[0]
        print(
            f"{name:>22}: paper: falls like 1/log t; here: {values[0]:.3g} -> {values[-1]:.2g}, "
            f"(log t)^{slope:.2f}"
        )
        assert values[-1] < values[0] and slope < -0.1

    # Theorem 3.1 and Lemma 3.1: all samples are separated, and the margin nears its bound.
    print(f"paper: q_min -> infinity; here: {run['margin'][-1]:.2f} at t = 1e5")
    print(f"paper: margin ratio -> 1; here: {run['margin_ratio'][-1]:.4f}")
    assert run["margin"][-1] > 10 and 0.8 < run["margin_ratio"][-1] < 1.0

    # Lemma 3.3: the parameters align with minus their gradient.
    print(f"paper: beta -> 1; here: {run['beta'][-1]:.5f}")
    assert run["beta"][-1] > 0.9


if __name__ == "__main__":
    main()
