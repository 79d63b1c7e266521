"""What the paper's Figure 2 turns into after 1e5 epochs: gradient flow to t = 10^10000.

K = 5, n = 10, d = 20 and the mean loss, as in section 4, under gradient flow in log time. The
headline: the paper reads O(1/log t) off panel (b), but within_class falls as (log t)^-1/2; the
figure that ends at log t = 13 shows what comes before. Everything else does fall as 1/log t.
Run it: `python examples/long_horizon.py`; it takes a few seconds.
"""

import math
from pathlib import Path

import fastnc
from fastnc.plots import long_horizon, save
from fastnc.theory.rates import constants, exponents, fitted_exponent

RESULTS = Path(__file__).parent / "results"
K, n, d, lr = 5, 10, 20, 5.0


def main() -> None:
    model = fastnc.ULPM(n_classes=K, n_per_class=n, dim=d)
    run = fastnc.flow(model, log10_time=10_000, seed=0)
    descent = fastnc.descend(model, lr=lr, epochs=100_000, seed=0)
    RESULTS.mkdir(exist_ok=True)
    figure = long_horizon(run, descent, "Figure 2 gone on to t = 10^10000 (shaded: the paper's)")
    print("written:", *save(figure, RESULTS / "long_horizon"))

    # Where both are valid, descent with lr = 5 is the flow at t = lr * epoch.
    end = math.log10(lr * 100_000)
    ours, theirs = float(run.at("within_class", end)), float(descent["within_class"][-1])
    print(f"descent at epoch 1e5: within_class {theirs:.5f}; flow at t = {lr * 1e5:g}: {ours:.5f}")
    assert abs(ours / theirs - 1) < 0.05

    print("\nexponents of log t, fitted for log t from 5 to 12 and for log10 t from 1e3 to 1e4:")
    times = run["log10_time"]
    for name, predicted in exponents(K, d).items():
        column = 1 - run[name[4:]] if name.startswith("1 - ") else run[name]
        early = fitted_exponent(times, column, 5 / math.log(10), 12 / math.log(10))
        late = fitted_exponent(times, column, 1e3, 1e4)
        paper = "" if name.startswith("1 - ") else "paper: O(1/log t); "
        print(f"{name:>24}: {paper}here: {early:.2f} at first, {late:.4f} in the end")
        assert abs(late - predicted) < 0.005

    # The constants are made of what is conserved or freezes, and can be read off at log t = 23.
    early = fastnc.flow(model, log10_time=10, seed=0, snapshots=5)
    found, gap = constants(early.W, early.H, early.y), run["margin"][-1]
    print("\nconstants predicted at t = 10^10, and measured at t = 10^10000:")
    for name, predicted, measured in (
        ("within_class sqrt(a)", found.within_class, run["within_class"][-1] * math.sqrt(gap)),
        ("(1 - margin_ratio) a", found.margin_deficit, (1 - run["margin_ratio"][-1]) * gap),
        ("equinorm_features a", found.equinorm, run["equinorm_features"][-1] * gap),
        ("equinorm_classifier a", found.equinorm, run["equinorm_classifier"][-1] * gap),
    ):
        print(f"{name:>24}: predicted {predicted:.5f}; here: {measured:.5f}")
        assert abs(measured / predicted - 1) < 0.02
    print(
        f"\nconserved: W^T W - H^T H to {run['conserved_drift'].max():.1e} of |W|^2, "
        f"the mean classifier to {run.about['mean_drift']:.1e}"
    )
    assert run["conserved_drift"].max() < 1e-8


if __name__ == "__main__":
    main()
