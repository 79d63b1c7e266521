"""Section 3.2 of the paper: a KKT direction that is not collapse, and how it is left.

Example 3.1 with the corrected (9) to (11), Theorems 3.3 and 3.4, and the escape: plain descent
stays on the ray through (7), noisy descent leaves it and collapses. Run it:
`python examples/s3_2_saddle.py`; it takes a few seconds.
"""

import math

import numpy as np

import fastnc
from fastnc.theory.curvature import tangent_curvature
from fastnc.theory.example31 import Example31
from fastnc.theory.sphere import along_sphere, optimal_loss


def main() -> None:
    example = Example31(C=1.0)
    W, H, y, model = example.W, example.H, example.y, example.model

    # (7) separates the classes, and its gradient is along itself: (9), corrected.
    loss, grad_W, _ = fastnc.loss_and_grads(W, H, y, "sum")
    print(f"paper: all samples are classified; here: margin {example.x:g}")
    factor = -2 / (1 + math.exp(2))
    print(f"paper (9), corrected: {factor:.6f} M; here: {grad_W[0, 0]:.6f} M", end="")
    print(f"; as printed: {example.printed_gradient[0, 0]:.6f} M")
    assert np.allclose(grad_W, example.gradient, rtol=1e-13, atol=1e-16)

    # (8): along it lies a KKT point of (5) whose objective is 4, where collapse has 3.
    at = fastnc.kkt(W, H, y)
    objective = ((W**2).sum() + (H**2).sum()) / (2 * at.margin)
    print(f"paper: a KKT point; here: stationarity {at.stationarity:.0e}, objective {objective:g}")
    assert at.stationarity < 1e-14 and abs(objective - 4) < 1e-13

    # Theorem 3.4: a direction of negative curvature on the sphere.
    value, (dW, dH) = tangent_curvature(W, H, y, "sum")
    print(f"paper: < 0; closed form {example.curvature:.9f}; here: {value:.9f}")
    assert abs(value / example.curvature - 1) < 1e-9
    for angle in (0.01, 0.1, 0.3):
        point = along_sphere(W, H, dW, dH, angle)
        fall = fastnc.loss(*point, y, "sum") - loss
        print(f"  an angle of {angle:g} along it: the loss moves by {fall:+.2e}")
        assert fall < 0

    # (10) does not show this for a small beta; another path does, all the way to collapse.
    print("paper (10) => (11): lower for suitable small beta; here:", end="")
    for beta in (-0.05, -0.3, -0.69):
        rise = fastnc.loss(*example.printed_path(beta), y, "sum") - loss
        print(f" {rise:+.1e} at beta = {beta:g}", end=";")
    print()
    assert fastnc.loss(*example.printed_path(-0.05), y, "sum") > loss
    losses = [fastnc.loss(*example.path(t), y, "sum") for t in np.linspace(0, 0.5, 51)]
    best = optimal_loss(radius=4.0, n_classes=4, n_per_class=1, reduction="sum")
    print(f"M + t v v^T: {losses[0]:.6f} falls to {losses[-1]:.6f}; Theorem 3.3: {best:.6f}")
    assert (np.diff(losses) < 0).all() and abs(losses[-1] / best - 1) < 1e-12

    # Plain descent from (7) only grows the norm: its ratio stays 3/4.
    plain = fastnc.descend(model, lr=0.5, epochs=20_000, W=W, H=H)
    spread = np.ptp(plain["margin_ratio"])
    print(f"\npaper: gradient descent gets stuck; here: ratio {plain['margin_ratio'][-1]:.12f}")
    assert spread < 1e-9 and plain["margin"][-1] > 4

    # Noise has a part along the escape with probability 1. A noise that stays would outweigh the
    # gradient, which falls like 1/t; so some noisy epochs, and then the flow, which has the time.
    noisy = fastnc.descend(model, lr=0.5, epochs=200, W=W, H=H, noise=0.05, seed=0)
    ends = [fastnc.flow(model, 100_000, W=run.W, H=run.H)["margin_ratio"] for run in (plain, noisy)]
    print(
        f"paper: noise escapes to collapse; here, at t = 10^100000: ratio "
        f"{ends[1][-1]:.4f} after noise, {ends[0][-1]:.4f} without"
    )
    assert ends[1][-1] > 0.99 and abs(ends[0][-1] - 0.75) < 1e-9

    # Remark 3.3 says "within a small number of iterations"; without noise that kept coming, a
    # perturbation of relative size eps takes gradient flow until log t ~ 2 / eps^2.
    dW, dH = example.escape
    for eps in (0.2, 0.1, 0.05):
        run = fastnc.flow(model, 2 / eps**2, W=W + 4 * eps * dW, H=H + 4 * eps * dH)
        late = run["log10_time"][run["margin_ratio"] > 0.99]
        log_t = late[0] * math.log(10)
        print(
            f"Remark 3.3, eps = {eps:g}: predicted log t = {2 / eps**2:.0f}; here: {log_t:.0f} "
            f"(t = 10^{late[0]:.0f})"
        )
        assert 0.7 < log_t * eps**2 / 2 < 1.3


if __name__ == "__main__":
    main()
