"""Which stochastic descents leave the saddle of Example 3.1, and which cannot.

Section 3.2 and Remark 3.3 of the paper say that the noise of SGD has a part along the escaping
direction with probability 1. For minibatches and for noisy labels it has none: the gradient of
each sample is `r_i h_i^T` for W and `W^T r_i` for h_i, both in the span of the rows of W and H
together. That span has 2 dimensions at (7) and never grows, and collapse needs 3. The same holds of
every rule that turns with the features, as momentum and normalised descent do. Adam does not turn
with them: its batches leave from a rotated (7), though not from (7) itself, whose zeros are
entries that never get a gradient. Gaussian noise, which is no gradient of a sample, leaves at once.

Run it: `python examples/sgd_escape.py`; it takes some ten seconds.
"""

import numpy as np

import fastnc
from fastnc.theory import Example31

R = fastnc.rules
EXAMPLE = Example31(C=1.0)
TURN = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
# What is drawn, from which start, and whether it leaves.
CASES = {
    "minibatches of 2": ({"lr": 0.5, "batch_size": 2, "epochs": 4000}, None, False),
    "noisy labels": ({"lr": 0.5, "label_noise": 0.1, "epochs": 2000}, None, False),
    "momentum, batches": ({"rule": R.Momentum(0.1), "batch_size": 2, "epochs": 2000}, None, False),
    "normalised, batches": (
        {"rule": R.NormalizedDescent(0.05), "batch_size": 2, "epochs": 1000}, None, False,
    ),
    "Adam, batches": ({"rule": R.Adam(1e-2), "batch_size": 2, "epochs": 1000}, None, False),
    "Adam, batches, turned": ({"rule": R.Adam(1e-2), "batch_size": 2, "epochs": 1000}, TURN, True),
    "Gaussian noise": ({"lr": 0.5, "noise": 0.05, "epochs": 200}, None, True),
}  # fmt: skip


def main() -> None:
    print(f"{'drawn':<24}{'singular values of (W; H), 3 and 4':>36}   margin ratio, then on")
    for name, (options, turn, leaves) in CASES.items():
        W, H = (x if turn is None else x @ turn for x in (EXAMPLE.W, EXAMPLE.H))
        run = fastnc.descend(EXAMPLE.model, W=W, H=H, snapshots=3, **options)
        s = np.linalg.svd(np.concatenate([run.W, run.H]), compute_uv=False)
        # On from there without noise, which would outweigh a gradient that vanishes.
        on = fastnc.descend(
            EXAMPLE.model, epochs=1000, W=run.W, H=run.H, schedule="loss-scaled", snapshots=3
        )
        ratio = on["margin_ratio"][-1]
        print(f"{name:<24}{s[2]:>24.1e}{s[3]:>12.1e}   {run['margin_ratio'][-1]:.4f}, {ratio:.6f}")
        # What rounding leaves of exact zeros, beside entries of the size of the first ones.
        inside = s[2] < 1e-12 * s[0]
        assert inside != leaves, name
        if not leaves:
            assert abs(ratio - 0.75) < 1e-3, name
    assert ratio > 0.999
    print("Two dimensions hold 3/4 of the margin at best; what keeps to them stays at (7)'s ray.")


if __name__ == "__main__":
    main()
