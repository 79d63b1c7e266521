"""How exact everything is beside torch in the same precision: every operation over one grid.

    python bench/accuracy.py [--dtype float32 float64] [--most KDN] [--only NAME ...] [--csv FILE]

Cases: K in 2 to 50,000, d in 1 to 512, N in 1 to 1000, and four kinds of logits. "1" and "5" are
Gaussian of that scale. In "margins" and "equal gaps" logits are exact in the dtype: H has a one in
each row, W multiples of 1/4, margins from -80 to 85 (float64: -200 to 700), where in the second all
wrong classes have the same logit, which is collapse. Operations: the objective, its log form,
Hessian products, and the torch loss with each of its options.

Errors are relative to wider numbers (`wide.py`): the median over entries that are normal numbers,
and normwise; few samples are drawn several times, all draws together. What is held
to: at most torch's error and 2 ulp; with exact logits 1e-6 (float32) and 1e-14 (float64) for the
loss and every normal entry of grad_W. A line of the table is the case that comes worst off, in ulp
above torch's error, and how many cases are beyond the bound.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from itertools import product as pairs
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import wide
from machine import machine
from wide import Options

import fastnc
from fastnc.nn import linear_cross_entropy

CLASSES, DIMS, SAMPLES = (2, 10, 100, 1000, 10_000, 50_000), (1, 16, 64, 512), (1, 64, 1000)
KINDS = ("1", "5", "margins", "equal gaps")
EXACT_LOGITS = KINDS[2:]
MARGINS = {"float32": (-80.0, 85.0), "float64": (-200.0, 700.0)}
BOUND = {"float32": 1e-6, "float64": 1e-14}
ULPS = 2.0
# Whose residuals are differences of numbers of their size, whatever the logits are.
CANCEL = ("smoothing", "probabilities", "z-loss", "entropies", "softcap", "logit scale", "lse")
# In float64 the comparison takes ten times as long as what is compared.
MOST = {"float32": 3e10, "float64": 2e9}


class Case(NamedTuple):
    kind: str
    K: int
    d: int
    N: int
    dtype: str


def draw(case, seed):
    """W, H, y."""
    kind, K, d, N, dtype = case
    rng = np.random.default_rng([seed, K, d, N])
    if kind not in EXACT_LOGITS:
        W = float(kind) * rng.standard_normal((K, d)) / np.sqrt(d)
        H = rng.standard_normal((N, d))
        return W.astype(dtype), H.astype(dtype), rng.integers(0, K, N)
    low, high = MARGINS[dtype]
    W = np.zeros((K, d))
    if kind == "margins":
        W -= rng.integers(0, 4, (K, d)) / 4
    labels = rng.integers(0, K, d)
    # A margin from each of d strata, in no order.
    places = (rng.permutation(d) + rng.random(d)) / d
    margins = np.round(4 * (low + (high - low) * places)) / 4
    # Where all logits are equal an entropy has no gradient that an error could be relative to.
    W[labels, np.arange(d)] = np.where(margins == 0.0, 0.25, margins)
    H = np.zeros((N, d))
    column = np.arange(N) % d
    H[np.arange(N), column] = 1.0
    return W.astype(dtype), H.astype(dtype), labels[column]


def options_of(case, seed):
    """The torch loss's options, by name."""
    K, N, dtype = case.K, case.N, case.dtype
    rng = np.random.default_rng([seed, K, N])
    bias = (rng.integers(-4, 5, K) / 4).astype(dtype)
    weight = (rng.random(K) + 0.1).astype(dtype)
    p = rng.standard_normal((N, K))
    p = np.exp(p - p.max(axis=1, keepdims=True))
    p = (p / p.sum(axis=1, keepdims=True)).astype(dtype)
    return {
        "nn": Options(),
        "nn mean": Options(mean=True),
        "nn bias": Options(bias=bias),
        "nn weights": Options(weight=weight, mean=True),
        "nn smoothing": Options(smoothing=0.1),
        "nn smoothing 1": Options(smoothing=1.0),
        "nn smoothing, weights, bias": Options(smoothing=0.1, weight=weight, bias=bias, mean=True),
        "nn probabilities": Options(probabilities=p),
        "nn probabilities, weights, smoothing": Options(
            probabilities=p, weight=weight, smoothing=0.1
        ),
        "nn softcap": Options(softcap=15.0),
        "nn logit scale": Options(logit_scale=0.7),
        "nn z-loss": Options(z_loss=0.01, mean=True),
        "nn lse": Options(of="lse"),
        "nn entropies": Options(of="entropies"),
    }


def leaves(W, H, bias):
    W, H = (torch.from_numpy(x).clone().requires_grad_() for x in (W, H))
    return W, H, None if bias is None else torch.from_numpy(bias).clone().requires_grad_()


def differentiated(value, W, H, b):
    found = dict(zip(("grad_W", "grad_H", "grad_bias"), torch.autograd.grad(
        value, [x for x in (W, H, b) if x is not None]), strict=False))  # fmt: skip
    return {"total": value.detach().numpy(), **{k: g.numpy() for k, g in found.items()}}


def by_fastnc(W, H, y, o):
    W, H, b = leaves(W, H, o.bias)
    target = torch.from_numpy(y if o.probabilities is None else o.probabilities)
    v = None if o.weight is None else torch.from_numpy(o.weight)
    made = linear_cross_entropy(
        H, W, target, linear_bias=b, weight=v,
        label_smoothing=o.smoothing, reduction="mean" if o.mean else "sum",
        softcap=o.softcap or None, logit_scale=None if o.logit_scale == 1.0 else o.logit_scale,
        z_loss_weight=o.z_loss, return_lse=o.of == "lse", return_entropies=o.of == "entropies",
    )  # fmt: skip
    return differentiated(made if o.of == "loss" else getattr(made, o.of).sum(), W, H, b)


def by_torch(W, H, y, o):
    W, H, b = leaves(W, H, o.bias)
    target = torch.from_numpy(y if o.probabilities is None else o.probabilities)
    z = F.linear(H, W, b)
    if o.logit_scale != 1.0:
        z = o.logit_scale * z
    if o.softcap:
        z = o.softcap * torch.tanh(z / o.softcap)
    if o.of == "lse":
        return differentiated(torch.logsumexp(z, 1).sum(), W, H, b)
    if o.of == "entropies":
        log_p = torch.log_softmax(z, 1)
        return differentiated(-(log_p.exp() * log_p).sum(), W, H, b)
    reduction = "mean" if o.mean else "sum"
    v = None if o.weight is None else torch.from_numpy(o.weight)
    loss = F.cross_entropy(z, target, weight=v, label_smoothing=o.smoothing, reduction=reduction)
    if o.z_loss:
        z_losses = o.z_loss * torch.logsumexp(z, 1).square()
        loss = loss + (z_losses.mean() if o.mean else z_losses.sum())
    return differentiated(loss, W, H, b)


def objective(W, H, y):
    loss, grad_W, grad_H = fastnc.loss_and_grads(W, H, y, reduction="sum")
    log_loss, by_W, by_H = fastnc.log_loss_and_grads(W, H, y, reduction="sum")
    return (
        {"total": loss, "grad_W": grad_W, "grad_H": grad_H},
        {"log_loss": log_loss, "grad_W / loss": by_W, "grad_H / loss": by_H},
    )


def torch_hessian(W, H, y, dW, dH):
    W, H, _ = leaves(W, H, None)
    loss = F.cross_entropy(H @ W.T, torch.from_numpy(y), reduction="sum")
    grads = torch.autograd.grad(loss, [W, H], create_graph=True)
    along = sum((torch.from_numpy(v) * g).sum() for v, g in zip((dW, dH), grads, strict=True))
    return dict(zip(("HW", "HH"), (g.numpy() for g in torch.autograd.grad(along, [W, H])),
                    strict=True))  # fmt: skip


def comparisons(case, seed, only):
    """Operation by operation: its name, then ours, torch's and the true results by name."""
    W, H, y = draw(case, seed)

    def asked(name):
        return not only or any(part in name for part in only)

    if asked("objective") or asked("log form"):
        true, logs = wide.objective(W, H, y, case.dtype)
        ours, our_logs = objective(W, H, y)
        theirs = by_torch(W, H, y, Options())
        yield "objective", ours, theirs, true
        with np.errstate(all="ignore"):
            loss = theirs["total"]
            their_logs = {
                "log_loss": np.log(loss),
                "grad_W / loss": theirs["grad_W"] / loss,
                "grad_H / loss": theirs["grad_H"] / loss,
            }
        yield "log form", our_logs, their_logs, logs
    if asked("Hessian"):
        rng = np.random.default_rng(seed)
        dW, dH = (rng.standard_normal(x.shape).astype(x.dtype) for x in (W, H))
        HW, HH = fastnc.hessian_vector_product(W, H, y, dW, dH, reduction="sum")
        theirs = torch_hessian(W, H, y, dW, dH)
        yield "Hessian", {"HW": HW, "HH": HH}, theirs, wide.hessian(W, H, y, dW, dH, case.dtype)
    if case.K * case.d * case.N > MOST[case.dtype]:
        return
    for name, o in options_of(case, seed).items():
        if asked(name):
            true = wide.evaluate(W, H, y, o, case.dtype)[1]
            yield name, by_fastnc(W, H, y, o), by_torch(W, H, y, o), true


class Errors:
    """Of one result over all draws of a case."""

    def __init__(self):
        self.relative, self.apart, self.size = [], 0.0, 0.0

    def add(self, found, true, dtype, absolute):
        """`absolute`: an error of a number below 1 is not divided by it."""
        found = np.atleast_1d(np.asarray(found)).astype(true.dtype)
        size = np.abs(true)
        apart = np.where(np.isfinite(found), np.abs(found - true), size)
        normal = (size >= np.finfo(dtype).tiny) & (size <= np.finfo(dtype).max)
        size = np.maximum(size, 1.0) if absolute else size
        self.relative.append((apart[normal] / size[normal]).astype(np.float64))
        self.apart, self.size = self.apart + (apart**2).sum(), self.size + (size**2).sum()

    def figures(self):
        """The median and the largest error of an entry, and the normwise one."""
        relative = np.concatenate(self.relative)
        norm = float(np.sqrt(self.apart / self.size)) if self.size else 0.0
        if not len(relative):
            return 0.0, 0.0, norm
        return float(np.median(relative)), float(relative.max()), norm


def rows(case, only):
    """What one case shows: a dictionary for each operation and result."""
    draws = max(1, min(16, 128 // case.N, int(4e6 // (case.K * (case.d + case.N)))))
    found = {}
    for seed in range(draws):
        for operation, ours, theirs, true in comparisons(case, seed, only):
            for name, exact in true.items():
                pair = found.setdefault((operation, name), (Errors(), Errors()))
                for errors, given in zip(pair, (ours, theirs), strict=True):
                    errors.add(given[name], exact, case.dtype, name == "log_loss")
    ulp = np.finfo(case.dtype).eps
    for (operation, name), (ours, theirs) in found.items():
        median, largest, norm = ours.figures()
        their_median, _, their_norm = theirs.figures()
        held = case.kind in EXACT_LOGITS and name in ("total", "grad_W")
        held = held and not any(word in operation for word in CANCEL)
        above = max(median - their_median, norm - their_norm) / ulp
        beyond = above > ULPS or (held and largest > BOUND[case.dtype])
        yield {
            "operation": operation, "result": name, **case._asdict(), "median": median,
            "torch median": their_median, "norm": norm, "torch norm": their_norm,
            "above torch, ulp": above, "largest": largest if held else "", "beyond": int(beyond),
        }  # fmt: skip


def told(row):
    place = f"{row['kind']}; {row['K']}, {row['d']}, {row['N']}"
    return (
        f"{row['above torch, ulp']:8.2f}  {row['median']:8.1e} {row['torch median']:8.1e}  "
        f"{row['norm']:8.1e} {row['torch norm']:8.1e}  {place}"
    )


def table(found):
    """A line for each operation, result and dtype: the worst case, and how many are beyond."""
    lines = [
        f"{'operation, result':46} {'dtype':8} {'beyond':>9} {'ulp above torch':>9}  "
        "median and torch's, norm and torch's; logits; K, d, N; largest with exact logits"
    ]
    groups = {}
    for row in found:
        groups.setdefault((row["operation"], row["result"], row["dtype"]), []).append(row)
    for (operation, result, dtype), group in groups.items():
        worst = max(group, key=lambda row: row["above torch, ulp"])
        largest = [row["largest"] for row in group if row["largest"] != ""]
        beyond = sum(row["beyond"] for row in group)
        tail = f"; {max(largest):.1e}" if largest else ""
        lines.append(
            f"{operation + ', ' + result:46} {dtype:8} {beyond:4d}/{len(group):4d} "
            f"{told(worst)}{tail}"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=BOUND)
    parser.add_argument("--most", type=float, default=4e10, help="largest K d N")
    parser.add_argument("--only", nargs="+", default=[], help="parts of operations' names")
    parser.add_argument("--csv", type=Path, help="every row, not the worst alone")
    arguments = parser.parse_args()
    grid = [
        Case(kind, K, d, N, dtype)
        for dtype, K, d, N, kind in pairs(arguments.dtype, CLASSES, DIMS, SAMPLES, KINDS)
        if K * d * N <= arguments.most
    ]
    # Small ones first: what is interrupted has some of each kind in its file.
    grid.sort(key=lambda case: case.K * case.d * case.N)
    print("; ".join(f"{k} {v}" for k, v in machine().items()))
    found, start = [], time.perf_counter()
    for n, case in enumerate(grid):
        print(f"\r{n}/{len(grid)} {time.perf_counter() - start:.0f} s", end="", file=sys.stderr)
        made = list(rows(case, arguments.only))
        found.extend(made)
        if arguments.csv:
            with arguments.csv.open("a" if n else "w", newline="") as file:
                writer = csv.DictWriter(file, list(made[0]))
                if not n:
                    writer.writeheader()
                writer.writerows(made)
    print(file=sys.stderr)
    print(table(found))


if __name__ == "__main__":
    main()
