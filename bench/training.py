"""Images a second of `fastnc train` beside a plain torch loop on the same network: interleaved.

    python bench/training.py [--images 256] [--size 32] [--feature-dim 512] [--rounds 5] [--compile]

The plain loop is what one writes by hand: float images normalised beforehand, the same VGG-13,
`F.cross_entropy`, SGD with momentum; in torch's usual layout, and channels last. Also printed: what
one measurement of the collapse costs, in images of training. With --compile the same training step
goes through `torch.compile` too, and the seconds of its first step are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from fastnc.training.data import Dataset
from fastnc.training.evaluation import measure
from fastnc.training.experiment import Experiment
from fastnc.training.network import network
from fastnc.training.stepper import TrainingStepper


def data_set(images: int, size: int) -> Dataset:
    """Random pixels: their values do not change what a step costs."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 1, size, size), dtype=np.uint8))
    labels = torch.arange(images) % 10
    return Dataset(pixels, labels, pixels[:10], labels[:10], 0.286, 0.353)


def plain_step(
    data: Dataset, experiment: Experiment, layout: torch.memory_format
) -> Callable[[torch.Tensor], None]:
    """A step of the loop that one writes by hand."""
    torch.manual_seed(0)
    net = network(
        head=experiment.head, feature_dim=experiment.feature_dim, batch_norm=experiment.batch_norm
    )
    net = net.to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=experiment.lr, momentum=experiment.momentum)
    images = (data.train_images.float() / 255.0 - data.mean) / data.std
    images = images.contiguous(memory_format=layout)

    def step(rows: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images[rows]), data.train_labels[rows]).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--feature-dim", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--head", choices=("own", "linear"), default="own")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="a compiled step as well")
    options = parser.parse_args()
    # A linear head has no hidden layers.
    width = 4096 if options.head == "linear" else options.feature_dim
    experiment = Experiment(
        head=options.head, feature_dim=width, batch_norm=True,
        batch_size=options.batch_size, precision=options.precision,
    )  # fmt: skip
    data = data_set(options.images, options.size)
    training = TrainingStepper(data, 10**6, experiment, torch.device("cpu"))
    steps: dict[str, Callable[[torch.Tensor], object]] = {
        "fastnc": lambda rows: training._batch(),
        "plain torch": plain_step(data, experiment, torch.contiguous_format),
        "channels last": plain_step(data, experiment, torch.channels_last),
    }
    if options.compile:
        compiled = TrainingStepper(data, 10**6, experiment, torch.device("cpu"), compile=True)
        began = time.perf_counter()
        compiled._batch()
        print(f"the first compiled step took {time.perf_counter() - began:.0f} s")
        steps["compiled"] = lambda rows: compiled._batch()
    batches = torch.split(torch.arange(options.images), options.batch_size)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for rows in batches:
                step(rows)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rates = {name: options.images / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<14} {rate:8.1f} images/s, fastnc / it {rates['fastnc'] / rate:.3f}")
    measure(training.net, training.pixels, data, training.workers)
    began = time.perf_counter()
    measure(training.net, training.pixels, data, training.workers)
    spent = (time.perf_counter() - began) * rates["fastnc"] / (options.images + 10)
    print(f"a measurement costs as much as training on {spent:.2f} of the images it measures")


if __name__ == "__main__":
    main()
