"""What two gloo ranks do under `torchrun`; test_distributed compares it with one process.

`torchrun --nproc-per-node 2 distributed_ranks.py FOLDER` leaves `rank0.pt` and `rank1.pt` there.
"""

import sys
from pathlib import Path

import numpy as np
import small_training
import torch
from matplotlib.figure import Figure

import fastnc
from fastnc._core.ranks import Workers, workers_of_torchrun
from fastnc.cli import build
from fastnc.training import evaluation
from fastnc.training.loop import Experiment, train
from fastnc.training.network import Pixels

# 61 samples: the shares of two ranks differ. As many classes as `test_rules` compiles rules for.
MODEL = fastnc.ULPM(4, dim=6, labels=np.arange(61) % 4)
RULES = {
    "momentum": fastnc.rules.Momentum(0.5),
    "adam": fastnc.rules.Adam(1e-2),
    "adamw": fastnc.rules.AdamW(fastnc.rules.Cosine(1e-2, 300)),
}
PLAIN = Experiment(feature_dim=12, batch_size=15, lr=0.02, snapshots=4)
NORMED = Experiment(feature_dim=12, batch_size=20, lr=0.02, snapshots=4, batch_norm=True)
# Long enough to leave the plain steps behind.
SCALED = Experiment(
    feature_dim=12, batch_size=15, lr=0.02, snapshots=3, schedule="loss-scaled"
)  # fmt: skip
SCALED_EPOCHS = 60


def untrained():
    """A network at its start, in evaluation of 61 images."""
    torch.manual_seed(7)
    data = small_training.dataset(61, 23)
    return small_training.network(), Pixels(data.mean, data.std), data


def command(arguments):
    """`fastnc ...`, in this process."""
    build()(list(map(str, arguments)), standalone_mode=False)


def main(folder):
    small_training.put_in_place()
    # Rendering is another test's: it takes as long as the runs.
    Figure.savefig = lambda figure, file, **options: file.write(b"a figure")
    found = {}
    with workers_of_torchrun("cpu"):
        workers = Workers()
        command(["ulpm", "--epochs", 200, "--out", folder / "ulpm", "--n-per-class", 7])
        options = ["--data", folder / "data", "--image-size", 6, "--feature-dim", 12]
        options += ["--batch-size", 15, "--lr", 0.02, "--snapshots", 4, "--epochs", 6]
        command(["train", *options, "--out", folder / "train"])
        columns, H = evaluation.measure(*untrained(), workers)
        found["measured"], found["features"] = columns, workers.gathered(H)
        run = train(small_training.dataset(), 6, PLAIN)
        found["trained"] = {name: run[name].tolist() for name in run.columns}
        found["W"], found["H"] = torch.from_numpy(run.W), torch.from_numpy(run.H)
        run = train(small_training.dataset(), SCALED_EPOCHS, SCALED)
        found["scaled"] = {name: run[name].tolist() for name in run.columns}
        found["scaled W"], found["scaled H"] = torch.from_numpy(run.W), torch.from_numpy(run.H)
        run = train(small_training.dataset(), 3, NORMED)
        found["normed"] = torch.from_numpy(run.H)
        found["normed nc1"] = run["nc1"].tolist()
        for dtype in ("float64", "float32"):
            run = fastnc.descend(MODEL, 2.0, 300, seed=2, dtype=dtype, snapshots=5, sharded=True)
            found[dtype] = {name: run[name].tolist() for name in run.columns}
            found[dtype + " W"], found[dtype + " H"] = map(torch.from_numpy, (run.W, run.H))
        for name, rule in RULES.items():
            run = fastnc.descend(MODEL, rule=rule, epochs=300, seed=2, snapshots=5, sharded=True)
            found[name + " W"], found[name + " H"] = map(torch.from_numpy, (run.W, run.H))
        # A first leg, whose second save one rank did not live to make.
        path = folder / "checkpoint.npz"
        legs = {"seed": 2, "snapshots": 5, "sharded": True, "checkpoint": path}
        fastnc.descend(MODEL, 2.0, 100, **legs)
        fastnc.descend(MODEL, 2.0, 160, resume=True, **legs)
        if workers.rank == 1:
            latest = sorted(
                folder.glob("checkpoint-rank1of2-*"), key=lambda p: p.stat().st_mtime_ns
            )
            latest[-1].unlink()
        torch.distributed.barrier()
        run = fastnc.descend(MODEL, 2.0, 300, resume=True, **legs)
        found["resumed H"] = torch.from_numpy(run.H)
        try:
            fastnc.descend(MODEL, 1e300, 50, seed=2, sharded=True)
        except fastnc.Diverged as stop:
            found["diverged"] = str(stop)
        found["rank"] = workers.rank
    torch.save(found, folder / f"rank{found['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
