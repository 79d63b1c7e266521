"""Figure 3 of the paper: a network trained far past separation drifts to neural collapse.

The paper trains VGG-13 on all of FashionMNIST. So does the run of `results/figure3.csv`,

    fastnc train --epochs 350 --batch-size 512 --lr 0.02 --precision bfloat16

in 4 minutes and a half on one NVIDIA H100 (torch 2.11): no error is left from epoch 56 on, an epoch
takes 0.7 s, and each of the 46 measurements of all 60,000 images 0.36 s, 6 % of the run. Its small
brother for a processor, 1000 images at 16 x 16 (44 minutes of one core of an AMD Zen 3):

    fastnc train --subset 1000 --image-size 16 --feature-dim 128 --batch-norm --batch-size 50 \\
        --lr 0.02 --epochs 100 --snapshots 10 --checkpoint-every 120

`python examples/figure3.py` draws the figure again from those numbers and checks what they
show. `python examples/figure3.py RUN.npz` does so with a run of your own, and goes on from its
last W and H with the layer-peeled model alone.
"""

import csv
import sys
from pathlib import Path

import numpy as np

import fastnc
from fastnc.plots import figure3, save

RESULTS = Path(__file__).parent / "results"


def recorded() -> fastnc.Trajectory:
    """The run of `results/figure3.csv`; a table has no W and H."""
    with open(RESULTS / "figure3.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    nothing = np.empty((0, 4096), np.float32)
    return fastnc.Trajectory(columns, nothing, nothing, np.empty(0, np.int64), {})


def main() -> None:
    run = fastnc.Trajectory.load(sys.argv[1]) if len(sys.argv) > 1 else recorded()
    stem = Path(sys.argv[1]).with_name("figure3") if len(sys.argv) > 1 else RESULTS / "figure3"
    print("written:", *save(figure3(run), stem))

    # The paper: all quantities decrease or stay small during the training.
    first = int(np.searchsorted(run["epoch"], 10))
    for name, paper in (
        ("equinorm_features", "falls"),
        ("equinorm_classifier", "stays small"),
        ("within_class", "falls"),
        ("equiangular_features", "falls"),
        ("equiangular_classifier", "stays small"),
        ("self_duality", "falls"),
        ("nc1", "falls"),
    ):
        early, late = run[name][first], run[name][-1]
        print(f"{name:>22}: paper: {paper}; here: {early:.3g} at epoch 10 -> {late:.3g}")
        assert late < (early if paper == "falls" else max(1.5 * early, 0.2))
    right = run["train_accuracy"]
    print(f"paper: zero training error; here: {1.0 - right[-1]:.4f} at the end")
    assert right[-1] > 0.99

    if not len(run.H):
        return
    # The other half of the paper, from where the network stopped: W and H alone separate every
    # sample, and collapse.
    peeled = fastnc.peel(run, epochs=100_000)
    for name in ("margin", "within_class", "self_duality", "margin_ratio"):
        print(f"{name:>22}: network {peeled[name][0]:.3g} -> alone {peeled[name][-1]:.3g}")
    assert peeled["margin"][-1] > 0.0
    assert peeled["within_class"][-1] < peeled["within_class"][0]
    assert peeled["margin_ratio"][-1] > peeled["margin_ratio"][0]


if __name__ == "__main__":
    main()
