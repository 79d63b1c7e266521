"""From a torch model to its collapse table: thirty lines that fit any classifier.

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

    def collapse() -> fastnc.CollapseMetrics:
        with torch.no_grad():
            return fastnc.collapse_metrics(body(x), y, head.weight, head.bias)

    before = collapse()
    for epoch in range(100):
        if epoch == 80:
            optimiser.param_groups[0]["lr"] = 2e-4
        for batch in torch.randperm(len(x)).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(head(body(x[batch])), y[batch]).backward()
            optimiser.step()
    after = collapse()
    print(after)
    for name in ("nc1", "within_class", "nc4_agreement"):
        print(f"{name}: {getattr(before, name):.3g} -> {getattr(after, name):.3g}")
    # The paper: in the terminal phase features gather at their class means.
    assert after.nc1 < 0.2 * before.nc1 and after.nc4_agreement > 0.98


if __name__ == "__main__":
    main()
