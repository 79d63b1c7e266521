"""Many epochs of gradient descent on scale * (4) on CUDA tensors, without waits for the device.

Small problems: one program a problem, any number of problems at once. W and H stay in its
registers for all epochs of a launch; nothing is shared between programs. H is a tuple of slabs
(N, 8) and W one of rows of 8: eight features lie across lanes, slabs and most samples in
registers, so that both reductions (over d for the logits, over N for dW) exchange little between
lanes. Flops `6 K N d` an epoch; bound by float64 arithmetic and lane exchanges.

Other problems take one `step` of `cross_entropy` an epoch. In float32 `W_low`, `H_low` keep the
rounding errors of the updates: the state is `W + W_low`, `H + H_low`.
"""

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu.cross_entropy import step
from fastnc.kernels.gpu.plan import EXACT, cdiv, options
from fastnc.kernels.gpu.softmax import exp
from fastnc.kernels.gpu.trajectory_products import WARPS, product_tile, small_products

# A launch of a small problem: long enough to hide its start, short enough for an interrupt.
EPOCHS_A_LAUNCH = 10_000
# Whether float64 problems whose tile fits use `small_products`.
SHIPPED_PRODUCTS = False


# A compilation takes seconds: one is enough for any number of samples, features and epochs.
@triton.jit(do_not_specialize=["n_samples", "dim", "epochs"])
def small_problems(
    W, H, W_low, H_low, y, rates, scale: "fp64", n_samples, dim, epochs,
    K: tl.constexpr, BN: tl.constexpr, SLABS: tl.constexpr, COMPENSATED: tl.constexpr,
):  # fmt: skip
    """`epochs` steps of one problem a program: W (B, K, d), H (B, N, d), rates (B,), one y."""
    problem = tl.program_id(0).to(tl.int64)
    dtype = H.dtype.element_ty
    rows = tl.arange(0, BN)
    lanes = tl.arange(0, 8)
    row_real = rows < n_samples
    W += problem * K * dim
    H += problem * n_samples * dim
    W_low += problem * K * dim
    H_low += problem * n_samples * dim
    h_at = rows[:, None] * dim + lanes[None, :]
    labels = tl.load(y + rows, mask=row_real, other=0).to(tl.int32)
    step = (tl.load(rates + problem) * scale).to(dtype)
    step = tl.where(row_real, step, tl.zeros((BN,), dtype))
    h = ()
    h_low = ()
    w = ()
    w_low = ()
    for j in tl.static_range(SLABS):
        real = row_real[:, None] & (j * 8 + lanes < dim)[None, :]
        h = h + (tl.load(H + j * 8 + h_at, mask=real, other=0.0),)
        if COMPENSATED:
            h_low = h_low + (tl.load(H_low + j * 8 + h_at, mask=real, other=0.0),)
    for k in tl.static_range(K):
        for j in tl.static_range(SLABS):
            real = j * 8 + lanes < dim
            w = w + (tl.load(W + k * dim + j * 8 + lanes, mask=real, other=0.0),)
            if COMPENSATED:
                low = tl.load(W_low + k * dim + j * 8 + lanes, mask=real, other=0.0)
                w_low = w_low + (low,)
    for _epoch in range(epochs):
        z = ()
        z_y = tl.zeros((BN,), dtype)
        for k in tl.static_range(K):
            products = h[0] * w[k * SLABS][None, :]
            for j in tl.static_range(1, SLABS):
                products += h[j] * w[k * SLABS + j][None, :]
            # The extra axis makes the compiler keep a logit in one lane, not in eight, all of
            # which would compute what follows (half the instructions of an epoch).
            z = z + (tl.sum(tl.sum(products[None, :, :], axis=0), axis=1),)
            z_y = tl.where(labels == k, z[k], z_y)
        s = tl.zeros((BN,), dtype)
        for k in tl.static_range(K):
            s = tl.where((labels != k) & (z[k] - z_y > s), z[k] - z_y, s)
        t = ()
        S = tl.zeros((BN,), dtype)
        for k in tl.static_range(K):
            t = t + (tl.where(labels == k, 0.0, exp(z[k] - z_y - s)),)
            S += t[k]
        factor = step / (exp(-s) + S)
        # An update begins with the rounding error of the last one.
        changes = h_low
        if not COMPENSATED:
            for j in tl.static_range(SLABS):
                changes = changes + (tl.zeros((BN, 8), dtype),)
        new_w = ()
        new_low = ()
        for k in tl.static_range(K):
            r_k = (tl.where(labels == k, -S, t[k]) * factor)[:, None]
            new_changes = ()
            for j in tl.static_range(SLABS):
                old = w[k * SLABS + j]
                new_changes = new_changes + (changes[j] - r_k * old[None, :],)
                change = -tl.sum(h[j] * r_k, axis=0)
                if COMPENSATED:
                    change = w_low[k * SLABS + j] + change
                    new_low = new_low + (change - ((old + change) - old),)
                new_w = new_w + (old + change,)
            changes = new_changes
        new_h = ()
        new_h_low = ()
        for j in tl.static_range(SLABS):
            if COMPENSATED:
                new_h_low = new_h_low + (changes[j] - ((h[j] + changes[j]) - h[j]),)
            new_h = new_h + (h[j] + changes[j],)
        w = new_w
        w_low = new_low
        h = new_h
        h_low = new_h_low
    for j in tl.static_range(SLABS):
        real = row_real[:, None] & (j * 8 + lanes < dim)[None, :]
        tl.store(H + j * 8 + h_at, h[j], mask=real)
        if COMPENSATED:
            tl.store(H_low + j * 8 + h_at, h_low[j], mask=real)
    for k in tl.static_range(K):
        for j in tl.static_range(SLABS):
            at = k * dim + j * 8 + lanes
            real = j * 8 + lanes < dim
            tl.store(W + at, w[k * SLABS + j], mask=real)
            if COMPENSATED:
                tl.store(W_low + at, w_low[k * SLABS + j], mask=real)


def small_tile(n_classes, dim, n_samples, double):
    """(BN, SLABS, warps) of a small problem; None where the registers cannot hold its state."""
    BN = max(16, 1 << (n_samples - 1).bit_length())
    slabs = cdiv(dim, 8)
    # The loops over classes and slabs are unrolled: more would take minutes to compile.
    if n_classes > 12 or n_classes * slabs > 24:
        return None
    words, most = (2, 320) if double else (1, 200)
    for num_warps in (1, 2, 4, 8):
        # H and its change (or in float32 its low part) and the residuals lie across all lanes, W
        # across four. Float64 may take a quarter more registers than there are: one warp that
        # spills is faster than two that exchange sums (5.8 and 8.1 us an epoch of 1024 problems).
        state = 8 * BN * slabs * 2 + 3 * BN * n_classes
        if words * (state // (32 * num_warps) + 2 * n_classes * slabs) <= most:
            return BN, slabs, num_warps
    return None


def by_products(n_classes, dim, n_samples, double):
    """The tile of `small_products` for a problem's epochs; so far None: it was not yet timed."""
    return product_tile(n_classes, dim, n_samples) if double and SHIPPED_PRODUCTS else None


def small_options(num_warps):
    """Options of one program a multiprocessor, for which the compiler may use all registers."""
    return {**options(num_warps, 1), "maxnreg": 255}


def is_small(W, H, W_low):
    """Whether the epochs of one problem run inside one kernel."""
    return small_tile(*W.shape, len(H), W.element_size() == 8) is not None


def descend(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps in place: W (K, d), H (N, d); W_low, H_low of their shapes, or (0, 0)."""
    compensated = W_low.numel() > 0
    if is_small(W, H, W_low):
        rate = torch.full((1,), lr, dtype=torch.float64, device=W.device)
        descend_many(W[None], H[None], W_low[None], H_low[None], y, scale, rate, epochs)
        return
    low = (W_low, H_low) if compensated else (None, None)
    for _ in range(epochs):
        step(W, H, *low, y, scale, lr, None, EXACT)


def descend_many(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps of B problems at once, in place: W (B, K, d), H (B, N, d), lr (B,) float64.

    Every problem must be small (`small_tile`); each gets the same bits as alone.
    """
    compensated = W_low.numel() > 0
    n_problems, K, dim = W.shape
    tile = by_products(K, dim, H.shape[1], W.element_size() == 8)
    if tile is not None:
        BN, BK, BD = tile
        for first in range(0, epochs, EPOCHS_A_LAUNCH):
            small_products[(n_problems,)](
                W, H, y, lr, scale, H.shape[1], K, dim, min(epochs - first, EPOCHS_A_LAUNCH),
                BN=BN, BK=BK, BD=BD, **small_options(WARPS),
            )  # fmt: skip
        return
    BN, slabs, num_warps = small_tile(K, dim, H.shape[1], W.element_size() == 8)
    while epochs > 0:
        n = min(epochs, EPOCHS_A_LAUNCH)
        small_problems[(n_problems,)](
            W, H, W_low if compensated else W, H_low if compensated else H, y, lr, scale,
            H.shape[1], dim, n,
            K=K, BN=BN, SLABS=slabs, COMPENSATED=compensated, **small_options(num_warps),
        )  # fmt: skip
        epochs -= n
