"""Section 3.1 of the paper: the margin, what is missing to collapse, and the KKT point.

Lemma 3.1 as the identity behind it, Theorem 3.2's optimum, and Theorem 3.1 with Lemmas 3.2 and
3.3 along a gradient flow. Run it: `python examples/s3_1_margin.py`; it takes a few seconds.
"""

import math
from pathlib import Path

import numpy as np

import fastnc
from fastnc.plots import missing_margin, save
from fastnc.theory.rates import fitted_exponent
from fastnc.theory.sphere import collapsed

RESULTS = Path(__file__).parent / "results"
K, n, d = 5, 10, 20


def main() -> None:
    model = fastnc.ULPM(n_classes=K, n_per_class=n, dim=d)

    # Lemma 3.1: q_min <= (|W|^2 + |H|^2) / (2 (K-1) sqrt n), at any point.
    W, H = model.init(seed=0)
    parts = fastnc.margin_decomposition(W, H, model.y)
    bound = parts.energy / (2 * (K - 1) * math.sqrt(n))
    print(f"paper: q_min <= {bound:.4f}; here, at a random point: {parts.margin:.4f}")
    assert parts.margin <= bound
    # It is an identity: what is missing is a sum of five non-negative terms.
    off = abs(parts.energy - 2 * parts.separation_constant * parts.margin - parts.missing)
    print(f"here: the identity is off by {off / parts.energy:.1e} of |W|^2 + |H|^2; its terms")
    print(parts)
    assert off <= 1e-12 * parts.energy

    # Its equality is neural collapse with |W| = |H|, and nothing else (Remark 3.2).
    W, H, y = collapsed(radius=3.0, n_classes=K, n_per_class=n, dim=d)
    equal, unequal = fastnc.margin_ratio(W, H, y), fastnc.margin_ratio(2 * W, H, y)
    print(f"paper: equality at collapse; here: ratio {equal:.12f}, and {unequal:.3f} at (2W, H)")
    assert abs(equal - 1) < 1e-12 and unequal < 0.9

    # Theorem 3.2: scaled to margin 1, collapse is the optimum sqrt(n) (K-1) of (5), a KKT point.
    q = fastnc.neural_collapse_margin(W, H, y)
    objective = ((W**2).sum() + (H**2).sum()) / (2 * q)
    residual = fastnc.kkt(W, H, y).stationarity
    print(
        f"paper: optimum {math.sqrt(n) * (K - 1):.6f}; here: {objective:.6f}, "
        f"stationarity {residual:.0e}"
    )
    assert abs(objective / (math.sqrt(n) * (K - 1)) - 1) < 1e-12 and residual < 1e-12

    # Theorem 3.1: gradient flow tends to the direction of a KKT point, from any start that
    # separates; epsilon and delta of Lemma 3.2 vanish.
    run = fastnc.flow(model, log10_time=1000, seed=0)
    print("\npaper: beta -> 1, q_min -> infinity, epsilon -> 0; here:")
    print(f"{'t':>10}{'q_min':>12}{'1 - beta':>12}{'epsilon':>12}{'margin ratio':>14}")
    for log10_t in (1, 5, 10, 100, 1000):
        row = [
            float(run.at(name, log10_t)) for name in ("margin", "beta", "epsilon", "margin_ratio")
        ]
        print(
            f"{'10^' + str(log10_t):>10}{row[0]:>12.4f}{1 - row[1]:>12.3e}{row[2]:>12.3e}"
            f"{row[3]:>14.6f}"
        )
    late = run["log10_time"] >= 10
    assert (np.diff(run["epsilon"][late]) < 0).all() and (np.diff(run["beta"][late]) > 0).all()
    assert run["margin"][-1] > 2000 and run["margin_ratio"][-1] > 0.99
    # Asymptotically 1 - beta = (1 - margin_ratio) / 2, so that epsilon ~ (log t)^-1/2.
    slope = fitted_exponent(run["log10_time"], run["epsilon"], 100, 1000)
    quotient = (1 - run["beta"][-1]) / (1 - run["margin_ratio"][-1])
    print(f"here: epsilon ~ (log t)^{slope:.3f}; (1 - beta) / (1 - margin ratio) = {quotient:.4f}")
    assert abs(slope + 0.5) < 0.02 and abs(quotient - 0.5) < 0.01

    # At every state the residual of the KKT conditions *is* epsilon, with C = q_min / |theta|^2.
    at = fastnc.kkt(run.W, run.H, run.y)
    print(f"paper: residual <= epsilon; here: {at.stationarity:.9f} and {at.epsilon:.9f}")
    assert abs(at.stationarity / at.epsilon - 1) < 1e-9 and at.complementarity <= at.delta

    RESULTS.mkdir(exist_ok=True)
    print("written:", *save(missing_margin(run), RESULTS / "s3_1_margin"))


if __name__ == "__main__":
    main()
