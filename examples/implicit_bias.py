"""Which update rule goes to which maximum margin: one problem, five rules, three norms.

The margin is homogeneous: what a descent tends to is a direction, and each rule measures it in a
norm of its own. Normalised descent goes where gradient descent goes, to the l2 margin, but at a
rate of 1 / epochs; sign descent and Adam without epsilon go to that of the largest entry, spectral
descent to that of the operator norm. Three classes of 12, 6 and 2 samples tell them apart: with
equal classes collapse is best in l2 and in the operator norm alike.

The problem is not convex, and where a rule ends need not be a maximum. What is asserted is that it
ends at a point that is stationary in its own norm: there the gradient and theta are dual to each
other, `-<theta, grad> = |theta| |grad|_*`, and the share that is missing is shown. The l2 end is a
proven maximum: its ratio is 1, which is the convex optimum over all dimensions.

Run it: `python examples/implicit_bias.py`; it takes some ten seconds.
"""

import numpy as np

import fastnc

R = fastnc.rules
MODEL = fastnc.ULPM(3, dim=4, labels=np.repeat([0, 1, 2], (12, 6, 2)))
COLUMNS = ("margin_ratio", "margin_ratio_max", "margin_ratio_spectral")
# A rule, how long it runs, the column of its own norm, and the share of duality it may miss.
RULES = {
    "gradient descent": (R.GradientDescent(2.0), 20_000, "margin_ratio", None),
    "normalised": (R.NormalizedDescent(0.05), 4000, "margin_ratio", 1e-3),
    "sign": (R.SignDescent(5e-3), 4000, "margin_ratio_max", 0.1),
    "Adam, eps = 0": (R.Adam(5e-3, (0.5, 0.5), 0.0), 4000, "margin_ratio_max", 0.1),
    "spectral": (R.SpectralDescent(1e-2), 4000, "margin_ratio_spectral", 0.02),
}


def undual(run, norm, dual) -> float:
    """`1 + <theta, grad> / (|theta| |grad|_*)` of norms over both factors: 0 where stationary."""
    _, *grads = fastnc.log_loss_and_grads(run.W, run.H, run.y)
    inner = sum(float((x * g).sum()) for x, g in zip((run.W, run.H), grads, strict=True))
    return 1.0 + inner / (norm(run.W, run.H) * dual(*grads))


DUALS = {
    "margin_ratio": (
        lambda W, H: np.hypot(np.linalg.norm(W), np.linalg.norm(H)),
        lambda V, G: np.hypot(np.linalg.norm(V), np.linalg.norm(G)),
    ),
    "margin_ratio_max": (
        lambda W, H: max(np.abs(W).max(), np.abs(H).max()),
        lambda V, G: np.abs(V).sum() + np.abs(G).sum(),
    ),
    "margin_ratio_spectral": (
        lambda W, H: max(np.linalg.norm(W, 2), np.linalg.norm(H, 2)),
        lambda V, G: np.linalg.norm(V, "nuc") + np.linalg.norm(G, "nuc"),
    ),
}


def main() -> None:
    runs = {}
    print(f"{'rule':<18}{'epochs':>8}" + "".join(f"{c:>24}" for c in COLUMNS) + "   not dual")
    for name, (rule, epochs, own, allowed) in RULES.items():
        run = runs[name] = fastnc.descend(MODEL, rule=rule, epochs=epochs, snapshots=10)
        missing = undual(run, *DUALS[own])
        ratios = "".join(f"{run[c][-1]:>23.4f}{'*' if c == own else ' '}" for c in COLUMNS)
        print(f"{name:<18}{epochs:>8}{ratios}{missing:>11.1e}")
        assert allowed is None or 0.0 <= missing < allowed, name
        # Late, a rule's own margin only grows; it is measured from a tenth of its epochs on.
        late = run["epoch"] >= epochs / 10
        if allowed is not None:
            assert (np.diff(run[own][late]) > 0.0).all(), name
    print("* the rule's own norm; 1 is the convex optimum (l2) or an upper bound (the others)")

    end = {name: {c: run[c][-1] for c in COLUMNS} for name, run in runs.items()}
    assert end["normalised"]["margin_ratio"] > 0.999
    for column, best in (
        ("margin_ratio", "normalised"),
        ("margin_ratio_max", "sign"),
        ("margin_ratio_spectral", "spectral"),
    ):
        assert max(end, key=lambda name: end[name][column]) == best, column
    # Adam is of sign descent's kind.
    others = [end[name]["margin_ratio_max"] for name in ("normalised", "spectral")]
    assert end["Adam, eps = 0"]["margin_ratio_max"] > 3 * max(others)
    # Five times as many epochs, and gradient descent is not nearly as far.
    assert end["gradient descent"]["margin_ratio"] < 0.95


if __name__ == "__main__":
    main()
