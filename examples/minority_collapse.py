"""Minority collapse (Fang et al., 2021): classifiers of small classes merge at a finite imbalance.

Ten classes, five of ten samples each and five larger ones, cross-entropy with weight decay. Run
it: `python examples/minority_collapse.py`; it takes a few seconds.
"""

from pathlib import Path

import numpy as np

from fastnc.paper.minority_collapse import minority_angles
from fastnc.plots import minority_collapse, save

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    5e-3: (1, 2, 3, 4, 6, 8, 10, 11, 12, 14, 16, 20, 26, 35),
    2e-3: (1, 2, 4, 7, 11, 16, 20, 24, 28, 30, 31, 35),
}


def main() -> None:
    curves = [minority_angles(ratios, weight_decay=lam) for lam, ratios in SETTINGS.items()]
    RESULTS.mkdir(exist_ok=True)
    print("written:", *save(minority_collapse(curves), RESULTS / "minority_collapse"))

    for run in curves:
        collapsed = run.ratios >= run.threshold
        assert collapsed.any() and not collapsed.all()
        before, after = run.found[~collapsed], run.found[collapsed]
        print(
            f"weight decay {run.weight_decay:g}: paper: one classifier for all minorities from a "
            f"finite imbalance on (theory: ratio {run.threshold:.2f}); here: {before[-1]:.1f} "
            f"degrees at ratio {run.ratios[~collapsed][-1]}, {after[0]:.0e} at "
            f"{run.ratios[collapsed][0]}"
        )
        assert before.min() > 10.0 and after.max() < 0.01

        # Balanced classes are a simplex ETF: cos = -1/9.
        balanced = np.degrees(np.arccos(-1.0 / 9.0))
        print(f"paper: {balanced:.3f} degrees when balanced; here: {run.found[0]:.3f}")
        assert abs(run.found[0] - balanced) < 1e-3

        off = np.abs(run.found - run.certified).max()
        print(f"certified optimum and what was found: {off:.0e} degrees apart at most")
        assert off < 0.01


if __name__ == "__main__":
    main()
