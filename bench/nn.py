"""`fastnc.nn.linear_cross_entropy` beside every way torch has: forward and backward, one table.

    python bench/nn.py [CASE ...] [--seconds S] [--compile] [--bias]
    python bench/nn.py --fixed [--seconds S]

Each round runs every path once, in a new order; medians, the least of all rounds, and the ratios
of the fastest torch path to ours. The least is what counts where memory is fresh, hundreds of MB a
call: a virtual machine that hands free pages back to its host pays several times for touching them
again, and whoever comes first pays. The cases are those of `suite/cases.py`. Before it is timed,
each path's gradients are compared with ours.

`--fixed`: a call's fixed cost, at sizes where it is most of it, beside eager alone. One thread and
its own processor time, in rounds of some calls of either, so that other processes hardly count; and
the same with z-loss.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numba
import torch
import torch.nn.functional as F
from suite.cases import CASES

from fastnc.nn import linear_cross_entropy

ROWS = (256, 2048)
# K, d, N.
FIXED = ((2, 8, 16), (5, 20, 50), (10, 64, 128), (10, 512, 64), (100, 128, 64))


def by_hand(H, W, y, b, rows):
    """The usual remedy: one backward for each part of the batch, so that its logits can go."""
    total = 0.0
    # A slice of the leaf itself would have each part add zeros to all of its gradient.
    H.grad = torch.empty_like(H)
    for start in range(0, len(H), rows):
        part = slice(start, start + rows)
        h = H.detach()[part].requires_grad_()
        loss = F.cross_entropy(F.linear(h, W, b), y[part], reduction="sum") / len(H)
        loss.backward()
        H.grad[part] = h.grad
        total += loss.detach()
    return total


def paths(H, W, y, b, with_compile):
    """Callables of no argument that leave gradients in H, W (and b)."""
    found = {
        "fastnc": lambda: linear_cross_entropy(H, W, y, linear_bias=b).backward(),
        "eager": lambda: F.cross_entropy(F.linear(H, W, b), y).backward(),
    }
    for rows in ROWS:
        if rows < len(H):
            found[f"by hand, {rows} rows"] = lambda rows=rows: by_hand(H, W, y, b, rows)
    if hasattr(F, "linear_cross_entropy"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        found["torch's own"] = lambda: F.linear_cross_entropy(H, W, y, linear_bias=b).backward()
        found["torch's own, chunked"] = lambda: F.linear_cross_entropy(
            H, W, y, linear_bias=b, options=chunked
        ).backward()
    if with_compile:
        compiled = torch.compile(lambda H, W, b: F.cross_entropy(F.linear(H, W, b), y))
        found["torch.compile"] = lambda: compiled(H, W, b).backward()
    return found


def measure(case, seconds, with_compile, with_bias):
    """Median and least seconds of each path."""
    W, H, y = map(torch.from_numpy, case.arrays())
    leaves = [H.requires_grad_(), W.requires_grad_()]
    b = torch.zeros(len(W), requires_grad=True) if with_bias else None
    leaves += [b] if with_bias else []
    found = paths(H, W, y, b, with_compile)
    expected = None
    for name, run in found.items():
        for leaf in leaves:
            leaf.grad = None
        run()
        grads = [leaf.grad for leaf in leaves]
        expected = expected or grads
        for a, e in zip(grads, expected, strict=True):
            # float32 sums of up to 2e5 terms in different orders, beside the largest entry.
            error = (a - e).abs().max() / e.abs().max()
            if error > 1e-3:
                raise ArithmeticError(f"{name}: gradients differ by {error:.1e}")
    times = {name: [] for name in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["fastnc"]) < 3:
        for name in random.sample(list(found), len(found)):
            for leaf in leaves:
                leaf.grad = None
            start = time.perf_counter()
            found[name]()
            times[name].append(time.perf_counter() - start)
    return {name: (statistics.median(t), min(t)) for name, t in times.items()}


def fixed(shape, seconds, z_loss_weight):
    """Median processor seconds of a call, ours and eager's, and of their ratio in a round."""
    K, d, N = shape
    g = torch.Generator().manual_seed(0)
    H = torch.randn(N, d, generator=g).requires_grad_()
    W = torch.randn(K, d, generator=g).requires_grad_()
    y = torch.randint(K, (N,), generator=g)
    options = {"z_loss_weight": z_loss_weight} if z_loss_weight else {}

    def ours():
        linear_cross_entropy(H, W, y, **options).backward()

    def eager():
        z = F.linear(H, W)
        loss = F.cross_entropy(z, y)
        if z_loss_weight:
            loss = loss + z_loss_weight * torch.logsumexp(z, 1).square().mean()
        loss.backward()

    times = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        for i in random.sample((0, 1), 2):
            start = time.process_time()
            for _ in range(20):
                H.grad = W.grad = None
                (ours, eager)[i]()
            times[i].append((time.process_time() - start) / 20)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return *map(statistics.median, times), ratio


def fixed_costs(seconds):
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    for z_loss_weight in (0.0, 1e-4):
        for shape in FIXED:
            ours, eager, ratio = fixed(shape, seconds, z_loss_weight)
            print(
                f"{shape}{', z-loss' if z_loss_weight else ''}: {1e6 * ours:.1f} us, eager "
                f"{1e6 * eager:.1f}, {ratio:.2f} times as long",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--bias", action="store_true", help="with a bias")
    parser.add_argument("--fixed", action="store_true", help="the fixed cost of a call")
    arguments = parser.parse_args()
    if arguments.fixed:
        fixed_costs(arguments.seconds)
        return
    for name in arguments.cases:
        case = CASES[name]
        times = measure(case, arguments.seconds, arguments.compile, arguments.bias)
        ours = times.pop("fastnc")
        best = [min(times, key=lambda path, i=i: times[path][i]) for i in (0, 1)]
        ratios = [times[path][i] / ours[i] for i, path in enumerate(best)]
        rate = case.flops / ours[0] / 1e9
        print(
            f"{name} {(case.n_classes, case.dim, case.n_samples)}: {1e3 * ours[0]:.3f} ms "
            f"(least {1e3 * ours[1]:.3f}), {rate:.0f} GFLOP/s; {best[0]} is {ratios[0]:.2f} times "
            f"as long ({best[1]} {ratios[1]:.2f})"
        )
        for path, (median, least) in sorted(times.items(), key=lambda item: item[1]):
            print(f"    {1e3 * median:10.3f} ms {1e3 * least:10.3f}  {path}", flush=True)


if __name__ == "__main__":
    main()
