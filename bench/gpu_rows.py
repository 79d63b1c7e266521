"""What `gpu.py` runs: fastnc on CUDA beside its peers, each a call of no argument.

A `Measurement` names a case, who ran it, the call, what it costs and what bounds it. With
`dry=True` the shapes are toys, the device is the CPU and Triton interprets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_exact import DOUBLE, SINGLE, data, exact_grads, exact_hessian

import fastnc
from fastnc import reference
from fastnc.kernels.gpu import cross_entropy as cross_entropy_gpu
from fastnc.kernels.gpu import hessian as hessian_gpu
from fastnc.kernels.gpu import scatter as scatter_gpu
from fastnc.kernels.gpu import trajectory as trajectory_gpu
from fastnc.kernels.gpu.plan import EXACT, FAST


@dataclass(frozen=True)
class Measurement:
    """One line of the table; `result()` gives what is compared with `exact`, float64 arrays."""

    case: str
    who: str
    call: Callable[[], Any]
    flops: float
    bytes: float
    bound: str  # "copy", "bf16", "float64"
    share: float = 1.0  # of the bound's rate that the tier can reach: products in parts
    result: Callable[[], Any] | None = None
    exact: Any = None
    tolerance: float = 0.0
    graph: bool = False


def everything(device: str, dry: bool):
    """All measurements, fastnc before its peers in each case."""
    for name, K, d, N, dtype in DRY if dry else OBJECTIVES:
        yield from objective(name, K, d, N, dtype, device, dry)
    yield from terminal(device, dry)
    yield from small_problems(device, dry)
    yield from mid_size(device, dry)
    yield from statistics(device, dry)


OBJECTIVES = [
    ("few classes", 10, 512, 2_000_000, SINGLE),
    ("32 classes", 32, 512, 1_000_000, SINGLE),
    ("hundred classes", 100, 512, 500_000, SINGLE),
    ("thousand classes", 1000, 512, 100_000, SINGLE),
    ("fifty thousand classes", 50_000, 1024, 8192, SINGLE),
    ("hundred classes, float64", 100, 128, 100_000, DOUBLE),
]
DRY = [("few classes", 3, 5, 7, SINGLE), ("many classes", 130, 4, 9, SINGLE)]


def by_kernels(tier, W, H, y):
    out = torch.empty(1, dtype=DOUBLE, device=W.device)
    grad_W, grad_H = torch.empty_like(W), torch.empty_like(H)

    def call():
        cross_entropy_gpu.loss_and_grads(W, H, y, 1.0 / len(H), out, grad_W, grad_H, tier)
        return out[0], grad_W, grad_H

    return call


def by_autograd(loss, W, H, y):
    """Loss and gradients of any function of leaves H and W."""
    leaves = [x.detach().clone().requires_grad_() for x in (H, W)]

    def call():
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves, y)
        value.backward()
        return value.detach(), leaves[1].grad, leaves[0].grad

    return call


def eager(H, W, y):
    return F.cross_entropy(F.linear(H, W), y)


def peers(dry: bool) -> dict[str, tuple[Callable[..., Any], bool]]:
    """Name to (loss of H, W, y; whether it computes in half precision)."""
    found: dict[str, tuple[Callable[..., Any], bool]] = {"torch eager": (eager, False)}
    if not dry:
        found["torch.compile"] = (torch.compile(eager), False)
    if hasattr(F, "linear_cross_entropy"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        found["F.linear_cross_entropy"] = (F.linear_cross_entropy, False)
        found["F.linear_cross_entropy, chunked"] = (
            lambda H, W, y: F.linear_cross_entropy(H, W, y, options=chunked),
            False,
        )
    found["fastnc.nn"] = (fastnc.nn.linear_cross_entropy, False)
    if dry:
        return found
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = (lambda H, W, y: liger(W, H, y), False)
    except ImportError:
        print("Liger cannot be imported: left out.")
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["Apple CCE, bf16"] = (linear_cross_entropy, True)
    except ImportError:
        print("Apple CCE cannot be imported: left out.")
    return found


def objective(name, K, d, N, dtype, device, dry):
    """Loss and both gradients; the fused step; Hessian products."""
    W, H, y = data(K, d, N, dtype, device)
    exact = exact_grads(W, H, y)
    single = dtype == SINGLE
    word = W.element_size()
    grads = 6.0 * K * N * d, 2.0 * word * N * d
    # Three products in 6, 3 and 3 terms, in the wide regime in 3, 3 and 3; at the fast tier in 3, 1
    # and 1. A tier is scored by the products that it makes.
    bound, share = ("bf16", 3.0 / (9.0 if K > 128 else 12.0)) if single else ("float64", 1.0)
    if K <= 32:
        bound, share = "copy", 1.0
    tiers = [("fastnc exact", EXACT, bound, share, 3e-5 if single else 1e-12)]
    if single:
        tiers.append(("fastnc fast", FAST, bound, max(share, 0.6), 3e-2))
    for who, tier, bound_, share_, tolerance in tiers:
        call = by_kernels(tier, W, H, y)
        yield Measurement(
            f"grads, {name}", who, call, *grads, bound_, share_, call, exact, tolerance
        )
    for who, (loss, half) in peers(dry).items():
        low = [x.bfloat16() for x in (W, H)] if half else (W, H)
        call = by_autograd(loss, *low, y)
        yield Measurement(f"grads, {name}", who, call, *grads, bound, share, call, exact)
    # Timed at a rate that leaves the data what they are, however often it is taken; checked at
    # one that moves H by its own size, so that nothing of the gradient hides below rounding.
    lr = float(H.abs().max() / exact[2].abs().max())
    ends = (exact[0], *(torch.add(x, g, alpha=-lr) for x, g in zip((W, H), exact[1:], strict=True)))
    for who, tier, bound_, share_, tolerance in tiers:
        out = torch.empty(1, dtype=DOUBLE, device=device)
        stepped = W.clone(), H.clone()

        def step(tier=tier, out=out):
            after = W.clone(), H.clone()
            cross_entropy_gpu.gradient_step(*after, y, 1.0 / N, lr, out, tier)
            return out[0], *after

        yield Measurement(
            f"step, {name}", who,
            lambda t=tier, s=stepped, o=out: cross_entropy_gpu.gradient_step(
                *s, y, 1.0 / N, 1e-12, o, t
            ),
            *grads, bound_, share_, step, ends, tolerance,
        )  # fmt: skip
    if single:
        yield compensated_step(name, W, H, y, lr, ends, grads[0], (bound, share))
    dW, dH, _ = data(K, d, N, dtype, device, seed=1)
    exact = exact_hessian(W, H, y, dW, dH)
    HW, HH = torch.empty_like(W), torch.empty_like(H)
    cost = 14.0 * K * N * d, 3.0 * word * N * d
    for who, tier, bound_, share_, tolerance in tiers:

        def product(tier=tier):
            hessian_gpu.hessian_vector_product(W, H, y, dW, dH, 1.0 / N, HW, HH, tier)
            return HW, HH

        yield Measurement(
            f"Hessian, {name}", who, product, *cost, bound_, share_, product, exact, tolerance
        )


def compensated_step(name, W, H, y, lr, ends, flops, reach):
    """The step of `descend`, which carries what rounding takes: H and H_low read and written."""
    N, d = H.shape
    moving = [W.clone(), H.clone(), torch.zeros_like(W), torch.zeros_like(H)]

    def step():
        after = [W.clone(), H.clone(), torch.zeros_like(W), torch.zeros_like(H)]
        out = torch.empty(1, dtype=DOUBLE, device=W.device)
        cross_entropy_gpu.step(*after, y, 1.0 / N, lr, out, EXACT)
        return out[0], after[0].double() + after[2], after[1].double() + after[3]

    return Measurement(
        f"compensated step, {name}", "fastnc exact",
        lambda: cross_entropy_gpu.step(*moving, y, 1.0 / N, 1e-12, None, EXACT),
        flops, 4.0 * H.element_size() * N * d, *reach, step, ends, 3e-5,
    )  # fmt: skip


def terminal(device, dry):
    """Relative errors of the gradient of H where every sample is classified by far."""
    K, n = (3, 2) if dry else (10, 100)
    for dtype, margin, tolerance in ((SINGLE, 40.0, 1e-5), (DOUBLE, 300.0, 1e-11)):
        make = np.random.default_rng(0)
        M = np.sqrt(margin * (K - 1) / K) * reference.simplex_etf(K)
        y = make.permutation(np.repeat(np.arange(K), n))
        W = torch.from_numpy(M + 0.01 * make.standard_normal(M.shape)).to(device, dtype)
        H = torch.from_numpy(M[y] + 0.01 * make.standard_normal((len(y), K))).to(device, dtype)
        labels = torch.from_numpy(y).to(device)
        exact = reference.loss_and_grads(W.double().cpu().numpy(), H.double().cpu().numpy(), y)
        exact = [torch.as_tensor(x / len(y), dtype=DOUBLE, device=device) for x in exact]
        case = f"terminal phase, margin {margin:.0f}"
        call = by_kernels(EXACT, W, H, labels)
        yield Measurement(case, "fastnc exact", call, 0, 0, "copy", 1.0, call, exact, tolerance)
        for who, (loss, half) in peers(dry).items():
            low = [x.bfloat16() for x in (W, H)] if half else (W, H)
            call = by_autograd(loss, *low, labels)
            yield Measurement(case, who, call, 0, 0, "copy", 1.0, call, exact)


def small_problems(device, dry):
    """Many of the paper's problems at once, a number of epochs in one launch."""
    B, K, d, n, epochs = (2, 2, 3, 2, 2) if dry else (1024, 5, 20, 10, 1000)
    N = K * n
    y = torch.arange(N, device=device) // n
    lr = torch.full((B,), 0.5, dtype=DOUBLE, device=device)
    make = torch.Generator(device).manual_seed(0)
    W0, H0 = (
        torch.randn((B, m, d), generator=make, device=device, dtype=DOUBLE) * d**-0.5
        for m in (K, N)
    )
    flops = 6.0 * B * K * N * d
    case = f"{epochs} epochs of {B} problems"

    def batched(W, H, steps):
        rows = torch.arange(N, device=W.device)
        for _ in range(steps):
            Z = torch.bmm(H, W.mT)
            r = torch.softmax(Z, 2)
            r[:, rows, y] -= 1.0
            r *= 0.5 / N
            grad_W = torch.bmm(r.mT, H)
            H -= torch.bmm(r, W)
            W -= grad_W

    exact = W0.clone(), H0.clone()
    batched(*exact, epochs)
    for dtype in (DOUBLE, SINGLE):
        W, H = W0.to(dtype, copy=True), H0.to(dtype, copy=True)
        compensated = dtype == SINGLE
        low = [torch.zeros_like(x) if compensated else x.new_empty((B, 0, 0)) for x in (W, H)]

        def call(W=W, H=H, low=low):
            trajectory_gpu.descend_many(W, H, *low, y, 1.0 / N, lr, epochs)
            return W, H

        who = "fastnc compensated float32" if compensated else "fastnc float64"
        tolerance = 1e-3 if compensated else 1e-9
        yield Measurement(
            case, who, call, flops * epochs, 0, "float64", 1.0, call, exact, tolerance
        )
    W, H = W0.clone(), H0.clone()
    yield Measurement(
        f"1 epoch of {B} problems", "torch bmm, CUDA graph", lambda: batched(W, H, 1),
        flops, 0, "float64", graph=True,
    )  # fmt: skip


def mid_size(device, dry):
    """One epoch of a problem that is not small, replayed from a CUDA graph of several."""
    K, d, N, epochs = (3, 4, 5, 2) if dry else (100, 128, 10_000, 64)
    for dtype in (DOUBLE, SINGLE):
        W, H, y = data(K, d, N, dtype, device)
        compensated = dtype == SINGLE
        low = [torch.zeros_like(x) if compensated else x.new_empty((0, 0)) for x in (W, H)]
        cost = 6.0 * K * N * d * epochs, 2.0 * W.element_size() * N * d * epochs
        bound, share = ("bf16", 0.25) if compensated else ("float64", 1.0)
        yield Measurement(
            f"{epochs} epochs, K={K}", f"fastnc {str(dtype).removeprefix('torch.')}",
            lambda W=W, H=H, low=low, y=y: trajectory_gpu.descend(
                W, H, *low, y, 1.0 / N, 1e-3, epochs
            ),
            *cost, bound, share, graph=True,
        )  # fmt: skip


def statistics(device, dry):
    """Class moments, scatter, nearest means, the second pass; the peers are of torch."""
    K, d, N = (3, 5, 9) if dry else (10, 512, 1_000_000)
    _, H, y = data(K, d, N, SINGLE, device)
    order = torch.argsort(y, stable=True)
    counts = torch.bincount(y, minlength=K)
    starts = F.pad(counts.cumsum(0), (1, 0))
    means = torch.empty((K, d), dtype=DOUBLE, device=device)
    squares = torch.empty(K, dtype=DOUBLE, device=device)
    exact = torch.stack([H[y == k].double().mean(0) for k in range(K)])

    def moments():
        scatter_gpu.class_moments(H, order, starts, means, squares)
        return (means,)

    def index_add():
        return (H.new_zeros((K, d)).index_add_(0, y, H) / counts[:, None],)

    cost = 5.0 * N * d, 4.0 * N * d
    for who, call, tolerance in (("fastnc", moments, 1e-12), ("torch index_add_", index_add, 0.0)):
        yield Measurement("class moments", who, call, *cost, "copy", 1.0, call, (exact,), tolerance)
    scatter = torch.empty((d, d), dtype=DOUBLE, device=device)
    nearest = torch.empty(N, dtype=torch.int64, device=device)
    within, distances = 0.0, []
    for h, label in zip(H.double().split(1 << 16), y.split(1 << 16), strict=True):
        x = h - exact[label]
        within = within + x.T @ x
        # Of equal distances, and of those that rounding could confuse, either mean is right.
        distances.append(torch.cdist(h, exact, compute_mode="donot_use_mm_for_euclid_dist"))
    distances = torch.cat(distances)

    def centred():
        scatter_gpu.centred_scatter(H, y, exact, scatter)
        return (scatter,)

    def chosen():
        scatter_gpu.nearest_means(H, exact, exact.mean(0), nearest)
        return (distances.gather(1, nearest[:, None])[:, 0],)

    yield Measurement(
        "centred scatter", "fastnc", centred,
        1.0 * N * d * d, 4.0 * N * d, "bf16", 1 / 6, centred, (within,), 1e-5,
    )  # fmt: skip
    yield Measurement(
        "nearest class mean", "fastnc",
        lambda: scatter_gpu.nearest_means(H, exact, exact.mean(0), nearest),
        2.0 * N * d * K, 4.0 * N * d, "copy", 1.0, chosen, (distances.amin(1),), 1e-6,
    )  # fmt: skip
    yield from second_pass(H, y, K, device)


def second_pass(H, y, K, device):
    """Deviations from known means and decisions, as `ClassDeviations` adds them up."""
    N, d = H.shape
    low, high = H.cpu(), y.cpu().numpy()
    statistics = fastnc.ClassStatistics(K, d)
    statistics.update(low, high)
    W = np.random.default_rng(0).standard_normal((K, d))
    second = fastnc.ClassDeviations(statistics, W)
    exact = torch.from_numpy(second._pass._torch_sums(H, high))
    call = lambda: second._pass._triton_sums(H, high)  # noqa: E731
    # Nine sums of different size: each in its own units.
    yield Measurement(
        "second pass", "fastnc", call,
        4.0 * N * d * K, 8.0 * N * d, "copy", 1.0,
        lambda: tuple(torch.from_numpy(call())), tuple(exact), 1e-9,
    )  # fmt: skip
    yield Measurement(
        "second pass", "torch float64", lambda: second._pass._torch_sums(H, high),
        4.0 * N * d * K, 8.0 * N * d, "copy",
    )  # fmt: skip
