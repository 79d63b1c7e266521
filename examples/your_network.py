"""From a torch model to its collapse, layer by layer and on held-out data, in an ordinary loop.

Run it: `python examples/your_network.py`. It trains a small network to the terminal
phase on FashionMNIST where torchvision's folder `data/FashionMNIST/raw` is at hand (or named as
the first argument), else on three thousand points of ten spirals.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fastnc
from fastnc.nn import CollapseTracker

EPOCHS = 200


def images(folder: Path, n: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n images (n, 784) in [-1, 1] and their labels."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 784 * n), np.uint8, offset=16).reshape(n, 784)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + n), np.uint8, offset=8)
    return torch.from_numpy(pixels / np.float32(127.5) - 1), torch.from_numpy(labels.astype(int))


def spirals(n: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten spirals in the plane, by their class."""
    y = torch.arange(n) % 10
    r = 0.25 + 0.75 * torch.rand(n)  # At the centre all classes are one.
    angle = 0.628 * y + 2.0 * r + 0.03 * torch.randn(n)
    return torch.stack([r * angle.cos(), r * angle.sin()], 1) * 2, y


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # So small a network is no work for two.
    named = sys.argv[1:2]
    folder = Path(*named or ["data/FashionMNIST/raw"])
    x, y = images(folder) if named or folder.is_dir() else spirals()
    body = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
    head = nn.Linear(64, 10)
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)

    # A sixth is held out; the loop for measuring is an ordinary one, in any order.
    train, test = torch.arange(len(x)) % 6 > 0, torch.arange(len(x)) % 6 == 0
    network = nn.Sequential(body, head)
    tracker = CollapseTracker(network, layers=["0.1", "0.3", "1"])

    def run(samples: torch.Tensor) -> None:
        with torch.no_grad(), tracker:
            for batch in samples.nonzero()[:, 0][torch.randperm(int(samples.sum()))].split(500):
                tracker.labels(y[batch])
                network(x[batch])

    network.eval()
    history = fastnc.History()
    run(train)
    before = tracker.metrics()["1"]
    history.add(0, before)
    network.train()
    x_train, y_train = x[train], y[train]
    for epoch in range(EPOCHS):
        if epoch == EPOCHS * 4 // 5:
            optimiser.param_groups[0]["lr"] = 2e-4
        for batch in torch.randperm(len(x_train)).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x_train[batch]), y_train[batch]).backward()
            optimiser.step()
    network.eval()
    run(train)
    table, about = tracker.metrics(), tracker.statistics()
    after = table["1"]
    history.add(EPOCHS, after)
    print(after, "\n\nLayer by layer:", table, sep="\n")
    run(test)
    held_out = tracker.metrics(about=about)["1"]
    print("\nOn held-out samples:", *(f"{n}={v:.3g}" for n, v in held_out.flat().items()))
    for name in ("nc1", "within_class", "nc4_agreement"):
        print(f"{name}: {getattr(before, name):.3g} -> {getattr(after, name):.3g}")
    # The paper: in the terminal phase features gather at their class means.
    assert after.nc1 < 0.2 * before.nc1 and after.nc4_agreement > 0.98


if __name__ == "__main__":
    main()
