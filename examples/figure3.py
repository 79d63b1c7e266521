"""Figure 3 of the paper: a network trained far past separation drifts to neural collapse.

The paper trains VGG-13 on FashionMNIST without weight decay, and does not say how. These are two
runs on 1,000 of its images at 16 x 16, on a CPU, which show what it says. They share 120 epochs of
constant steps, to no training error (epoch 56) and beyond:

    S="fastnc train --subset 1000 --image-size 16 --head linear --batch-norm --lr 0.1
       --feature-scale 0.1 --classifier-scale 2 --precision bfloat16"
    $S --batch-size 50 --epochs 120 --out runs/first

The first run, `results/figure3.csv`, goes on to epoch 500 with steps that grow as the loss falls:

    L="--start runs/first/checkpoint.pt --schedule loss-scaled --schedule-args"
    $S --batch-size 250 $L '{"decrease": 1.0, "batches": 20}' --epochs 500 --out runs/paper

The second, `results/figure3_deep.csv`, goes deep into the terminal phase, all images in a batch:

    $S --batch-size 1000 $L '{"decrease": 2.0}' --epochs 224 --out runs/deep

One core of an Intel Sapphire Rapids (torch 2.14; AMX) that others used as well: 6 minutes of
processor time for the first 120 epochs, 10 for the rest of the first run, 4 for that of the second;
by the clock 27, 22 and 19.

With constant steps alone self-duality goes from .587 at epoch 56 to .569 at epoch 112: after zero
error log t is what counts, and of it 500 epochs hold little. Why a linear head, batch normalisation
and a start of that balance: `fastnc.training.Experiment`. On all 60,000 images, on a GPU, leave out
`--subset` and `--image-size`; with these settings that has not been run.

`python examples/figure3.py` draws both figures from those numbers and asserts what they show.
`python examples/figure3.py RUN.npz` draws a run of your own, and goes on from its last W and H with
the layer-peeled model alone.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.stats import linregress, spearmanr

import fastnc
from fastnc.plots import figure3, peeled, peeled_summary, save

RESULTS = Path(__file__).parent / "results"
SIX = (
    "equinorm_features", "equinorm_classifier", "within_class", "equiangular_features",
    "equiangular_classifier", "self_duality",
)  # fmt: skip


def recorded(name: str) -> fastnc.Trajectory:
    """A run of which the table is in `results`; a table has no W and H."""
    with open(RESULTS / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {column: [float(row[column]) for row in rows] for column in rows[0]}
    nothing = np.empty((0, 512), np.float32)
    return fastnc.Trajectory(columns, nothing, nothing, np.empty(0, np.int64), {})


def since_zero_error(run: fastnc.Trajectory) -> slice:
    """The measurements from the first without a training error on."""
    right = run["train_accuracy"] == 1.0
    assert right.any()
    return slice(int(np.argmax(right)), None)


def check_the_paper(run: fastnc.Trajectory) -> None:
    """What the paper says of its Figure 3."""
    assert run["epoch"][-1] >= 500 and run["train_accuracy"][-1] == 1.0
    late = since_zero_error(run)
    epoch = run["epoch"]
    for name in ("equinorm_features", "equinorm_classifier"):
        print(f"(a) {name}: paper: below 0.1 after 500 epochs; here {run[name][-1]:.4f}")
        assert run[name][-1] < 0.1
    from_100 = epoch >= 100
    line = linregress(np.log(np.log(epoch[from_100])), np.log(run["within_class"][from_100]))
    print(
        "(b) log within_class over log log t: paper: linear after 100 epochs; here slope "
        f"{line.slope:.2f}, r^2 {line.rvalue**2:.4f}"
    )
    assert line.slope < 0.0 and line.rvalue**2 >= 0.9
    for name in ("equiangular_features", "equiangular_classifier", "self_duality"):
        values = run[name][late]
        rank = spearmanr(epoch[late], values).statistic
        print(
            f"(c, d) {name}: paper: falls; here {values[0]:.4f} at epoch {epoch[late][0]:.0f}, "
            f"{values[-1]:.4f} at {epoch[-1]:.0f}, rank correlation {rank:.3f}"
        )
        assert rank < -0.9 and values[-1] < 0.9 * values[0]


def check_the_terminal_phase(run: fastnc.Trajectory) -> None:
    """All six at most half of what they were at zero error; the margin far beyond float32."""
    late = since_zero_error(run)
    print(f"deep: margin {run['margin'][-1]:.1f}, log loss {run['log_loss'][-1]:.1f}")
    assert run["margin"][-1] > 100.0
    for name in SIX:
        first, last = run[name][late][0], run[name][-1]
        print(f"deep: {name} {first:.4f} -> {last:.4f}, {last / first:.2f} of it")
        assert last <= 0.5 * first


def go_on_without_the_network(run: fastnc.Trajectory, stem: Path) -> None:
    """The other half of the paper, from where the network stopped."""
    alone = fastnc.peel(run, epochs=100_000, progress=True)
    print(peeled_summary(run, alone))
    print("written:", *save(peeled(run, alone), stem.with_name("peeled")))
    assert alone["margin"][-1] > alone["margin"][0]
    assert alone["margin_ratio"][-1] > alone["margin_ratio"][0]


def main() -> None:
    if len(sys.argv) > 1:
        run, stem = fastnc.Trajectory.load(sys.argv[1]), Path(sys.argv[1]).with_name("figure3")
        print("written:", *save(figure3(run), stem))
        go_on_without_the_network(run, stem)
        return
    run = recorded("figure3")
    title = "VGG-13 on 1,000 images of FashionMNIST, batches of {}"
    print("written:", *save(figure3(run, title.format("50, then 250")), RESULTS / "figure3"))
    check_the_paper(run)
    deep = recorded("figure3_deep")
    figure = figure3(deep, title.format("50, then all"))
    print("written:", *save(figure, RESULTS / "figure3_deep"))
    check_the_terminal_phase(deep)


if __name__ == "__main__":
    main()
