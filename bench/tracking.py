"""What tracking costs beside the network itself, and token classes beside themselves.

    python bench/tracking.py [layers | tokens] [--images 2000] [--size 64] [--rounds 5]

layers    a ResNet-18 of torchvision's with random weights over random images: the plain loop of
          forward passes, and the same loop with the outputs of five layers tracked, in turns;
          beside it what memory the process takes on top, and the time of `metrics()`.
tokens    50,000 classes by Zipf's law, 64 features, 2 million tokens in batches: both passes
          streamed with 30 % of them ignored, and the same tokens with none ignored, in turns.

Medians, in one process; of the wall's clock, or on a shared machine of the processor's (--clock
cpu, which wants one thread: OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1). Memory is the largest resident
size of the process, above what it was (Linux).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastnc
from fastnc.nn import CollapseTracker

clock = time.perf_counter
LAYERS = ["layer1", "layer2", "layer3", "layer4", "avgpool"]
WAYS = [("memory", "trace"), ("nothing", "trace"), ("nothing", "full")]


def taken(call: Callable[[], Any]) -> tuple[Any, float]:
    """Seconds, of the call or as it counted them, and MiB of resident memory above the start's."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    start = clock()
    counted = call()
    spent = clock() - start if counted is None else counted
    return spent, resident("VmHWM") - before


def resident(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise ValueError(name)


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[Any, float]]:
    """Median seconds and the most memory of each; the first turn warms up."""
    found: dict[str, list[tuple[Any, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            told = taken(call)
            if turn:
                found[name].append(told)
    return {
        name: (np.median([t for t, _ in each], axis=0), max(m for _, m in each))
        for name, each in found.items()
    }


def layers(options: argparse.Namespace) -> None:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    images = torch.randn(options.images, 3, options.size, options.size)
    labels = torch.randint(10, (options.images,))

    def loop(tracker: CollapseTracker | None = None) -> None:
        for x, y in zip(images.split(options.batch), labels.split(options.batch), strict=True):
            if tracker is not None:
                tracker.labels(y)
            model(x)

    def tracked(tracker: CollapseTracker) -> Callable[[], None]:
        def call() -> None:
            with tracker:
                loop(tracker)

        return call

    for features in ("mean", "flatten"):
        trackers = {}
        for keep, scatter in WAYS:
            if scatter == "full" and features == "flatten":
                continue  # d x d of 16,384 features is 2 GiB.
            trackers[f"{keep}, {scatter}"] = CollapseTracker(
                model, layers=LAYERS, at="output", features=features, keep=keep, scatter=scatter
            )
        calls: dict[str, Callable[[], Any]] = {"plain": loop}
        calls |= {name: tracked(each) for name, each in trackers.items()}
        with torch.no_grad():
            found = in_turns(calls, options.rounds)
        print(f"{options.images} images of {options.size}, batches of {options.batch}, {features}")
        for name, (spent, memory) in found.items():
            after = ""
            if name in trackers:
                after = f", metrics() {seconds(trackers[name].metrics):.2f} s"
            ratio = spent / found["plain"][0]
            print(f"  {name:<16} {spent:7.2f} s {ratio:6.2f}  {memory:6.0f} MiB{after}")


def tokens(options: argparse.Namespace) -> None:
    K, d, N = options.classes, 64, options.tokens
    rng = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, K + 1)
    y = rng.choice(K, N, p=shares / shares.sum())
    ignored = np.where(rng.random(N) < 0.3, -100, y)
    means = rng.standard_normal((K, d), dtype=np.float32)
    W = means + 0.3 * rng.standard_normal((K, d), dtype=np.float32) if options.classifier else None

    def batches(labels: np.ndarray) -> Any:
        for lo in range(0, N, options.batch):
            own = labels[lo : lo + options.batch]
            noise = np.random.default_rng(lo).standard_normal((len(own), d), dtype=np.float32)
            noise *= 0.3
            noise += means[y[lo : lo + options.batch]]
            yield noise, own

    def both(labels: np.ndarray) -> Callable[[], np.ndarray]:
        def call() -> np.ndarray:
            spent = np.zeros(3)
            first = fastnc.ClassStatistics(K, d, ignore_index=-100)
            for H, own in batches(labels):
                spent[0] += seconds(first.update, H, own)
            second = fastnc.ClassDeviations(first, W)
            for H, own in batches(labels):
                spent[1] += seconds(second.update, H, own)
            spent[2] = seconds(second.metrics)
            return spent

        return call

    found = in_turns({"none": both(y), "30 %": both(ignored)}, options.rounds)
    print(f"{K} classes, {N} tokens, d = {d}, batches of {options.batch}")
    for name, (spent, memory) in found.items():
        first, second, last = spent
        print(
            f"  {name:<5} ignored: first pass {first:.2f} s, second {second:.2f}, metrics() "
            f"{last:.2f}; {memory:.0f} MiB, of which a batch is {4 * d * options.batch / 2**20:.0f}"
        )
    both_passes = [spent[:2].sum() for spent, _ in found.values()]
    print(f"  streamed, ratio {both_passes[1] / both_passes[0]:.2f}")


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = clock()
    call(*arguments)
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("layers", "tokens"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--classes", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--classifier", action="store_true", help="with a W beside the tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    global clock
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    options.batch = options.batch or (100 if options.what == "layers" else 65_536)
    {"layers": layers, "tokens": tokens}[options.what](options)


if __name__ == "__main__":
    main()
