"""`fastnc.nn.linear_cross_entropy` beside torch's own and exact arithmetic, and inside torch."""

import inspect
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnc.nn import LinearCrossEntropyLoss, linear_cross_entropy

REDUCTIONS = ("mean", "sum", "none")
ROOT = Path(__file__).parent.parent


def problem(N=37, K=7, d=5, dtype=torch.float64, seed=0):
    """Leaves H, W, b, and labels, weights of classes."""
    g = torch.Generator().manual_seed(seed)
    H = torch.randn(N, d, generator=g, dtype=torch.float64)
    W = torch.randn(K, d, generator=g, dtype=torch.float64)
    b = torch.randn(K, generator=g, dtype=torch.float64)
    y = torch.randint(K, (N,), generator=g)
    v = torch.rand(K, generator=g, dtype=torch.float64) + 0.1
    H, W, b, v = (x.to(dtype) for x in (H, W, b, v))
    return H.requires_grad_(), W.requires_grad_(), b.requires_grad_(), y, v


def expected(H, W, y, linear_bias=None, **options):
    """Torch's eager loss."""
    return F.cross_entropy(F.linear(H, W, linear_bias), y, **options)


def agree(ours, theirs, leaves, tolerance):
    """Losses, and gradients for the same random upstream, relative to the largest entry."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    upstream = torch.rand(theirs.shape, dtype=theirs.dtype, generator=torch.manual_seed(1))
    grads = torch.autograd.grad(ours, leaves, upstream)
    wanted = torch.autograd.grad(theirs, leaves, upstream)
    for a, e in zip((ours, *grads), (theirs, *wanted), strict=True):
        assert a.dtype == e.dtype
        scale = e.detach().abs().max() if e.numel() else torch.tensor(0.0)
        # Torch's own rounds `logsumexp - z_y` and `p_y - 1` to the size of the logits.
        torch.testing.assert_close(a, e, rtol=tolerance, atol=float(tolerance * (scale + 1e-3)))


def test_the_signature_is_torchs():
    ours = inspect.signature(linear_cross_entropy).parameters
    assert [(p.name, p.kind.name, p.default) for p in ours.values()] == [
        ("input", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("linear_weight", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("target", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("linear_bias", "KEYWORD_ONLY", None),
        ("weight", "KEYWORD_ONLY", None),
        ("reduction", "KEYWORD_ONLY", "mean"),
        ("ignore_index", "KEYWORD_ONLY", -100),
        ("label_smoothing", "KEYWORD_ONLY", 0.0),
    ]
    if hasattr(F, "linear_cross_entropy"):
        theirs = inspect.signature(F.linear_cross_entropy).parameters
        assert set(theirs) - set(ours) <= {"options"}


@settings(max_examples=80, deadline=None)
@given(
    N=st.integers(1, 90),
    K=st.integers(1, 12),
    d=st.integers(1, 20),
    bias=st.booleans(),
    weighted=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    ignore_index=st.sampled_from([-100, -1, 0, 2]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    probabilities=st.booleans(),
    seed=st.integers(0, 5),
)
def test_equals_torch_for_any_options(
    N, K, d, bias, weighted, reduction, ignored, ignore_index, smoothing, probabilities, seed
):
    H, W, b, y, v = problem(N, K, d, seed=seed)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = v
    if probabilities:
        y = torch.rand(N, K, dtype=torch.float64, generator=torch.manual_seed(seed)).softmax(1)
    else:
        options["ignore_index"] = ignore_index
        y[torch.rand(N, generator=torch.manual_seed(seed)) < ignored] = ignore_index
    leaves = [H, W, b] if bias else [H, W]
    theirs = expected(H, W, y, b if bias else None, **options)
    ours = linear_cross_entropy(H, W, y, linear_bias=b if bias else None, **options)
    if reduction == "mean" and not torch.isfinite(theirs):
        assert torch.isnan(ours) and torch.isnan(theirs)
        return
    # A few hundred roundings of 1e-16.
    agree(ours, theirs, leaves, 1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "N, K, d",
    [
        (1, 2, 1),
        (64, 8, 16),  # aligned
        (131, 13, 37),  # prime
        (3000, 10, 64),  # several parts, register tiles
        (601, 300, 70),  # several parts, BLAS
        (300, 11_000, 48),  # classes in ranges, two chunks
    ],
)
def test_equals_torch_in_every_regime_of_the_kernels(N, K, d, reduction):
    H, W, b, y, v = problem(N, K, d)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        h, w, c = (x.detach().to(dtype).requires_grad_() for x in (H, W, b))
        for smoothing, weight in itertools.product((0.0, 0.1), (None, v.to(dtype))):
            options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
            # Torch works in float64 for both: its float32 is worse than what is tested here.
            theirs = expected(h.double(), w.double(), y, c.double(), **wide(options))
            ours = linear_cross_entropy(h, w, y, linear_bias=c, **options)
            agree(ours.double(), theirs, [h, w, c], tolerance)


def wide(options):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def exact(z, y, v, smoothing):
    """Loss of one sample and its derivatives by the logits, in 60 digits."""
    mpmath.mp.dps = 60
    z = [mpmath.mpf(x) for x in z]
    v = [mpmath.mpf(x) for x in v]
    t = mpmath.mpf(smoothing)
    K = len(z)
    mass = [t * v[j] / K + ((1 - t) * v[j] if j == y else 0) for j in range(K)]
    # Digits enough for the smallest of all probabilities beside 1.
    mpmath.mp.dps = 60 + int(2 * max(abs(a - b) for a in z for b in z))
    top = max(z)
    log_sum = top + mpmath.log(sum(mpmath.exp(a - top) for a in z))
    total = sum(mass)
    loss = sum(m * (log_sum - a) for m, a in zip(mass, z, strict=True))
    return loss, [total * mpmath.exp(a - log_sum) - m for a, m in zip(z, mass, strict=True)]


@pytest.mark.parametrize("by", ["input", "bias"])
@pytest.mark.parametrize("K", [2, 4, 9])
@pytest.mark.parametrize(
    "dtype, low, high, bound",
    # A few units in the last place: one exponential, one log1p, K terms and a division.
    [(torch.float64, -200.0, 700.0, 1e-14), (torch.float32, -80.0, 85.0, 1e-6)],
)
def test_no_digit_is_lost_at_any_margin(dtype, low, high, bound, K, by):
    least = torch.finfo(dtype).tiny
    worst = 0.0
    # Multiples of 1/8, so that every logit and every gap is exact.
    for margin in np.round(np.linspace(low, high, 41) * 8) / 8:
        z = [margin] + [-0.125 * j for j in range(K - 1)]
        column = torch.tensor(z, dtype=dtype)[:, None]
        W = (column if by == "input" else torch.zeros_like(column)).requires_grad_()
        b = (column[:, 0].clone() if by == "bias" else torch.zeros(K, dtype=dtype)).requires_grad_()
        H = torch.ones(1, 1, dtype=dtype, requires_grad=True)
        loss = linear_cross_entropy(H, W, torch.tensor([0]), linear_bias=b, reduction="sum")
        grad_W, grad_b = torch.autograd.grad(loss, [W, b])
        true_loss, true_r = exact(z, 0, [1.0] * K, 0.0)
        pairs = [(loss, true_loss), *zip(grad_W[:, 0], true_r, strict=True)]
        for got, true in [*pairs, *zip(grad_b, true_r, strict=True)]:
            if abs(true) > least:
                worst = max(worst, float(abs(mpmath.mpf(got.item()) - true) / abs(true)))
    assert worst < bound


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
def test_no_digit_is_lost_with_weights_and_smoothing(smoothing):
    """Smoothing alone makes numbers cancel: where a residual crosses zero, at a small margin."""
    v = [0.5, 2.0, 1.25]
    for margin in (-200.0, -30.0, 20.0, 40.0, 300.0, 700.0):
        z = [margin, 0.0, -0.25]
        W = torch.tensor(z, dtype=torch.float64)[:, None].requires_grad_()
        H = torch.ones(1, 1, dtype=torch.float64)
        loss = linear_cross_entropy(
            H, W, torch.tensor([0]), weight=torch.tensor(v, dtype=torch.float64),
            reduction="sum", label_smoothing=smoothing,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(loss, W)
        true_loss, true_r = exact(z, 0, v, smoothing)
        for got, true in [(loss, true_loss), *zip(grad[:, 0], true_r, strict=True)]:
            # A few units in the last place.
            assert abs(mpmath.mpf(got.item()) - true) <= 1e-14 * abs(true)


def test_many_classes_are_exact_too():
    """The kernel for large W, against float64 gaps worked out one by one."""
    K, d = 9000, 128
    g = torch.Generator().manual_seed(0)
    W = (torch.randn(K, d, generator=g) / 8).requires_grad_()
    y = torch.tensor([3, 8999, 512])
    # Two samples in the terminal phase, margins near 60, and one that is wrong by as much.
    h = 4.0 * W.detach()[[3, 8999, 100]] * torch.tensor([[8.0], [8.0], [8.0]])
    h.requires_grad_()
    losses = linear_cross_entropy(h, W, y, reduction="none")
    z = h.detach().double() @ W.detach().double().T
    gaps = z - z.gather(1, y[:, None])
    gaps.scatter_(1, y[:, None], -torch.inf)
    true = torch.logsumexp(gaps, 1)
    true = torch.where(true < -30, true.exp(), torch.log1p(true.exp()))
    assert true[:2].max() < 1e-10 and true[2] > 20
    # float32 logits near 64 are 4e-6 apart, and their errors are exponentiated.
    torch.testing.assert_close(losses.double(), true, rtol=2e-4, atol=0.0)
    (grad_h,) = torch.autograd.grad(losses.sum(), h)
    r = torch.exp(gaps) / (1 + torch.exp(gaps).sum(1, keepdim=True))
    r = torch.where(torch.isnan(r), torch.softmax(z, 1), r)
    r.scatter_(1, y[:, None], 0.0)
    r.scatter_(1, y[:, None], -r.sum(1, keepdim=True))
    wanted = r @ W.detach().double()
    scale = wanted.abs().amax(1, keepdim=True)
    assert scale[:2].max() < 1e-9
    assert ((grad_h - wanted).abs() / scale).max() < 5e-4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored(smoothing):
    H, W, b, y, _ = problem()
    y[:] = -100
    for reduction, value in (("mean", float("nan")), ("sum", 0.0)):
        loss = linear_cross_entropy(
            H, W, y, linear_bias=b, reduction=reduction, label_smoothing=smoothing
        )
        theirs = expected(H, W, y, b, reduction=reduction, label_smoothing=smoothing)
        torch.testing.assert_close(theirs.item(), value, equal_nan=True)
        torch.testing.assert_close(loss.item(), value, equal_nan=True)
        grads = torch.autograd.grad(loss, [H, W, b])
        assert [g.shape for g in grads] == [H.shape, W.shape, b.shape]
        assert all((g == 0).all() for g in grads)


def test_ignored_samples_may_hold_anything():
    H, W, b, y, _ = problem()
    y[3] = -100
    with torch.no_grad():
        H[3] = float("nan")
    loss = linear_cross_entropy(H, W, y, linear_bias=b)
    grads = torch.autograd.grad(loss, [H, W, b])
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in grads)
    assert (grads[0][3] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_batch(reduction):
    H, W, b, y, _ = problem(N=0)
    theirs = expected(H, W, y, b, reduction=reduction)
    ours = linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    grads = torch.autograd.grad(ours.sum(), [H, W, b])
    assert [g.shape for g in grads] == [H.shape, W.shape, b.shape]
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("K, d", [(7, 5), (9001, 128)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad, K, d):
    H, W, _, y, _ = problem(K=K, d=d, dtype=torch.float32)
    with torch.no_grad():
        H[2, 1] = bad
    losses = linear_cross_entropy(H, W, y, reduction="none").detach()
    assert not torch.isfinite(losses[2])
    assert torch.isfinite(losses[torch.arange(len(y)) != 2]).all()
    assert not torch.isfinite(linear_cross_entropy(H, W, y).detach())


@pytest.mark.parametrize("K, d", [(7, 5), (9001, 128)])
def test_classes_masked_by_their_bias(K, d):
    H, W, b, y, _ = problem(K=K, d=d)
    y.clamp_(max=K - 2)
    with torch.no_grad():
        b[K - 1] = -torch.inf
    ours = linear_cross_entropy(H, W, y, linear_bias=b)
    theirs = expected(H, W, y, b)
    for a, e in zip(
        (ours, *torch.autograd.grad(ours, [H, W, b])),
        (theirs, *torch.autograd.grad(theirs, [H, W, b])),
        strict=True,
    ):
        # Both round some hundred times.
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-13)
    b.requires_grad_(False)
    assert torch.isinf(linear_cross_entropy(H, W, y, linear_bias=b, label_smoothing=0.1).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_single(dtype):
    H, W, b, y, _ = problem(N=3000, K=10, d=24, dtype=dtype)
    loss = linear_cross_entropy(H, W, y, linear_bias=b)
    assert loss.dtype == dtype
    grads = torch.autograd.grad(loss, [H, W, b])
    wide = [x.detach().double().requires_grad_() for x in (H, W, b)]
    true = expected(wide[0], wide[1], y, wide[2])
    # One rounding to the dtype at the end, of numbers that are right to 1e-5.
    half_ulp = torch.finfo(dtype).eps / 2 + 1e-5
    assert abs(loss.item() - true.item()) <= half_ulp * true.item()
    for g, t, x in zip(grads, torch.autograd.grad(true, wide), (H, W, b), strict=True):
        assert g.dtype == x.dtype
        least = torch.finfo(dtype).smallest_normal
        error = (g.double() - t).abs() - half_ulp * t.abs()
        # Below the smallest normal number half an ulp of it is what rounding may cost.
        assert error.max() <= 1e-6 * t.abs().max() + least * torch.finfo(dtype).eps


def test_gradients_stay_wide_until_the_upstream_one_has_scaled_them():
    """What a GradScaler is for: in float16 the mean's gradients alone lose their digits."""
    N = 100_000
    H = torch.ones(N, 2, dtype=torch.float16, requires_grad=True)
    W = torch.tensor([[6.0, 0.0], [0.0, 1.0]], dtype=torch.float16, requires_grad=True)
    y = torch.zeros(N, dtype=torch.int64)
    mean = linear_cross_entropy(H, W, y).float()
    (grad,) = torch.autograd.grad(mean * 32768.0, H)
    p = torch.sigmoid(torch.tensor(-5.0, dtype=torch.float64))
    wanted = 32768.0 * p / N * torch.tensor([-6.0, 1.0], dtype=torch.float64)
    lost = (wanted / 32768.0).half().double() * 32768.0
    assert ((lost - wanted).abs() / wanted.abs()).max() > 0.01
    # Half a unit in float16's last place.
    torch.testing.assert_close(grad.double(), wanted.expand(N, 2), rtol=5e-4, atol=0.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_what_is_asked_for(reduction):
    H, W, b, y, _ = problem()
    full = torch.autograd.grad(
        linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction).sum(), [H, W, b]
    )
    for wanted in itertools.product((False, True), repeat=3):
        leaves = [
            x.detach().clone().requires_grad_(w) for x, w in zip((H, W, b), wanted, strict=True)
        ]
        h, w, c = leaves
        loss = linear_cross_entropy(h, w, y, linear_bias=c, reduction=reduction).sum()
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        for leaf, asked, g in zip(leaves, wanted, full, strict=True):
            assert torch.equal(leaf.grad, g) if asked else leaf.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(H, W, y, linear_bias=b).requires_grad


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, smoothing, probabilities):
    H, W, b, y, v = problem(N=6, K=4, d=3)
    if probabilities:
        y = torch.rand(6, 4, dtype=torch.float64, generator=torch.manual_seed(0)).softmax(1)
    else:
        y[1] = -100

    def loss(H, W, b):
        return linear_cross_entropy(
            H, W, y, linear_bias=b, weight=v, reduction=reduction, label_smoothing=smoothing
        )

    # A second pass through the graph must give the same bits, as torch's own gives.
    assert torch.autograd.gradcheck(loss, (H, W, b), nondet_tol=0.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_retained_graph_gives_the_same_bits(reduction):
    H, W, b, y, _ = problem(N=300)
    loss = linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction)
    upstream = torch.full_like(loss, 0.5)
    first = torch.autograd.grad(loss, [H, W, b], upstream, retain_graph=True)
    first = [g.clone() for g in first]
    second = torch.autograd.grad(loss, [H, W, b], upstream)
    assert all(torch.equal(a, c) for a, c in zip(first, second, strict=True))


def test_a_leaf_need_not_copy_its_gradient():
    H, W, _, y, _ = problem(N=300)
    seen = []
    H.register_hook(lambda g: seen.append(g.data_ptr()))
    linear_cross_entropy(H, W, y).backward()
    assert H.grad.data_ptr() == seen[0]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_twice_is_refused(reduction):
    H, W, b, y, _ = problem()
    loss = linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction).sum()
    grads = torch.autograd.grad(loss, [H, W, b], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"cannot be differentiated twice; for Hessian"):
        grads[1].square().sum().backward()


@pytest.mark.parametrize("reduction, dynamic", [("mean", False), ("none", True)])
def test_compiles_into_one_graph(reduction, dynamic):
    H, W, b, y, v = problem()
    options = {"weight": v, "reduction": reduction, "label_smoothing": 0.1}

    def step(H, W, b, y):
        return linear_cross_entropy(2.0 * H, W, y, linear_bias=b, **options).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for N in (37, 21):
        h, t = H.detach()[:N].clone().requires_grad_(), y[:N]
        ours, eager = compiled(h, W, b, t), step(h, W, b, t)
        assert torch.equal(ours, eager)
        for a, e in zip(
            torch.autograd.grad(ours, [h, W, b]), torch.autograd.grad(eager, [h, W, b]), strict=True
        ):
            assert torch.equal(a, e)
    torch.compiler.reset()


def test_the_operator_keeps_torchs_rules():
    H, W, b, y, v = problem(N=9)
    operator = torch.ops.fastnc.linear_cross_entropy.default
    for reduction, wanted in (("mean", 7), ("sum", 2), ("none", 7)):
        torch.library.opcheck(
            operator,
            (H, W, b, y, v, reduction, -100, 0.1, wanted),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_functional_transforms():
    H, W, b, y, _ = problem()

    def loss(W, b):
        return linear_cross_entropy(H.detach(), W, y, linear_bias=b)

    got = torch.func.grad(loss, argnums=(0, 1))(W.detach(), b.detach())
    wanted = torch.autograd.grad(loss(W, b), [W, b])
    assert all(torch.equal(a, e) for a, e in zip(got, wanted, strict=True))
    with pytest.raises(NotImplementedError, match=r"cannot be differentiated twice"):
        torch.func.jacrev(torch.func.grad(loss))(W.detach(), b.detach())
    with pytest.raises(NotImplementedError, match=r"has no `vmap`: it takes all samples at once"):
        torch.func.vmap(lambda h, t: linear_cross_entropy(h, W.detach(), t))(H.detach(), y)

    def total(W):
        return linear_cross_entropy(H.detach(), W, y, reduction="none").sum()

    rows = torch.func.grad(total)(W.detach())
    assert torch.equal(rows, torch.autograd.grad(total(W), W)[0])


def test_autocast_gives_single_precision():
    H, W, b, y, _ = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.nn.functional.linear(H, torch.eye(5))
        loss = linear_cross_entropy(features, W, y, linear_bias=b)
    assert features.dtype == torch.bfloat16 and loss.dtype == torch.float32
    grads = torch.autograd.grad(loss, [H, W, b])
    assert [g.dtype for g in grads] == [torch.float32] * 3
    plain = expected(features.detach().float(), W, y, b)
    # The features are the same; everything after them is in float32.
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0.0)


def test_layouts_and_label_dtypes():
    H, W, b, y, _ = problem(N=40, K=6, d=8)
    value = linear_cross_entropy(H, W, y, linear_bias=b)
    base = torch.autograd.grad(value, [H, W, b])
    h = H.detach().T.contiguous().T.requires_grad_()
    w = torch.stack([W.detach(), W.detach()], dim=2)[..., 0].requires_grad_()
    c = b.detach().repeat_interleave(2)[::2].requires_grad_()
    assert not (h.is_contiguous() or w.is_contiguous() or c.is_contiguous())
    for labels in (y.to(torch.int32), y.to(torch.uint8), y.repeat_interleave(2)[::2]):
        loss = linear_cross_entropy(h, w, labels, linear_bias=c)
        assert torch.equal(loss, value)
        grads = torch.autograd.grad(loss, [h, w, c])
        assert all(torch.equal(a, e) for a, e in zip(grads, base, strict=True))
    one = H.detach()[:1].expand(40, 8)
    assert torch.equal(
        linear_cross_entropy(one, W, y), linear_cross_entropy(one.contiguous(), W, y)
    )


@pytest.mark.parametrize("N, K, d", [(6000, 10, 24), (700, 300, 70), (300, 11_000, 48)])
def test_the_bits_depend_neither_on_threads_nor_on_company(N, K, d):
    H, W, b, y, v = problem(N, K, d, dtype=torch.float32)

    def run():
        loss = linear_cross_entropy(H, W, y, linear_bias=b, weight=v, label_smoothing=0.1)
        return (loss, *torch.autograd.grad(loss, [H, W, b]))

    first = run()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, e) for a, e in zip(run(), first, strict=True))
    finally:
        torch.set_num_threads(before)
    results = [None] * 4
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, run())) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert all(torch.equal(a, e) for a, e in zip(result, first, strict=True))


PEAK = """
import resource, sys, torch
from fastnc.nn import linear_cross_entropy

def run(N, K, d):
    H = torch.randn(N, d, requires_grad=True)
    W = torch.randn(K, d, requires_grad=True)
    y = torch.arange(N) % K
    linear_cross_entropy(H, W, y, label_smoothing=float(sys.argv[1])).backward()

for K in (300, 9000):
    run(300, K, 128)  # what the code itself needs
N, K, d = map(int, sys.argv[2:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(N, K, d)
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / (4 * N * K))
"""


@pytest.mark.parametrize(
    "smoothing, shape", [("0.0", ("40000", "2000", "16")), ("0.1", ("4000", "20000", "64"))]
)
def test_the_logits_are_never_formed(smoothing, shape):
    """320 MB of logits: the peak grows by the gradients and by blocks, far less than that."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, smoothing, *shape],
        capture_output=True, text=True, check=True, env=os.environ, cwd=ROOT,
    )  # fmt: skip
    assert float(done.stdout) < 0.25


def test_one_sample_without_a_batch():
    H, W, b, y, v = problem(N=1)
    for reduction in REDUCTIONS:
        options = {"weight": v, "reduction": reduction, "label_smoothing": 0.1}
        theirs = expected(H[0], W, y[0], b, **options)
        agree(linear_cross_entropy(H[0], W, y[0], linear_bias=b, **options), theirs, [H, W], 1e-12)
        p = torch.softmax(b.detach(), 0)
        theirs = expected(H[0], W, p, b, **options)
        agree(linear_cross_entropy(H[0], W, p, linear_bias=b, **options), theirs, [H, W], 1e-12)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_further_dimensions(reduction, probabilities):
    """One classifier for each of 2 x 3 places; torch takes the logits' classes first."""
    g = torch.Generator().manual_seed(0)
    N, K, d = 5, 4, 3
    H = torch.randn(N, d, generator=g, dtype=torch.float64, requires_grad=True)
    W = torch.randn(K, 2, 3, d, generator=g, dtype=torch.float64, requires_grad=True)
    b = torch.randn(K, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    v = torch.rand(K, generator=g, dtype=torch.float64)
    z = torch.einsum("nd,kpqd->nkpq", H, W) + b
    options = {"weight": v, "reduction": reduction, "label_smoothing": 0.1}
    if probabilities:
        y = torch.randn(N, K, 2, 3, generator=g, dtype=torch.float64).softmax(1)
    else:
        y = torch.randint(K, (N, 2, 3), generator=g)
        y[0, 1] = -100
    theirs = F.cross_entropy(z, y, **options)
    ours = linear_cross_entropy(H, W, y, linear_bias=b, **options)
    agree(ours, theirs, [H, W, b], 1e-12)


def test_the_module_is_torchs():
    ours = LinearCrossEntropyLoss(5, 7, bias=True, weight=torch.rand(7), label_smoothing=0.1)
    H, _, _, y, _ = problem(dtype=torch.float32)
    loss = ours(H, y)
    wanted = expected(H, ours.linear.weight, y, ours.linear.bias, weight=ours.weight,
                      label_smoothing=0.1)  # fmt: skip
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0.0)
    loss.backward()
    assert ours.linear.weight.grad.shape == (7, 5) and ours.linear.bias.grad.shape == (7,)
    places = LinearCrossEntropyLoss(5, 4, out_features=(2, 3), bias=True)
    assert places(H.detach(), torch.zeros(37, 2, 3, dtype=torch.int64)).shape == ()
    assert "num_classes=7" in repr(ours) and "label_smoothing=0.1" in repr(ours)
    if hasattr(torch.nn, "LinearCrossEntropyLoss"):
        theirs = torch.nn.LinearCrossEntropyLoss(
            5, 7, bias=True, weight=torch.rand(7), label_smoothing=0.1
        )
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(theirs(H, y), loss, rtol=1e-5, atol=0.0)
        parameters = inspect.signature(LinearCrossEntropyLoss).parameters
        assert set(inspect.signature(torch.nn.LinearCrossEntropyLoss).parameters) - set(
            parameters
        ) <= {"options"}


def test_learns():
    """Ten steps down from the same start as torch's own."""
    H, W, b, y, _ = problem(dtype=torch.float32)
    ours, theirs = ([x.detach().clone().requires_grad_() for x in (W, b)] for _ in range(2))
    for leaves, loss in ((ours, linear_cross_entropy), (theirs, expected)):
        optimiser = torch.optim.SGD(leaves, lr=0.5)
        for _ in range(10):
            optimiser.zero_grad()
            loss(H.detach(), leaves[0], y, linear_bias=leaves[1]).backward()
            optimiser.step()
    for a, e in zip(ours, theirs, strict=True):
        # Ten steps of rounding.
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_activation_checkpointing():
    H, W, _, y, _ = problem()
    direct = torch.autograd.grad(linear_cross_entropy(H, W, y), [H, W])
    loss = torch.utils.checkpoint.checkpoint(linear_cross_entropy, H, W, y, use_reentrant=False)
    again = torch.autograd.grad(loss, [H, W])
    assert all(torch.equal(a, e) for a, e in zip(again, direct, strict=True))


# ruff: noqa: E501
H0, W0, Y0 = torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    "error, arguments, options, match",
    [
        (ValueError, (H0, W0, Y0), {"reduction": "avg"}, r"`reduction` must be 'mean', 'sum' or 'none'; got 'avg'"),
        (ValueError, (H0, W0, Y0), {"label_smoothing": 1.5}, r"`label_smoothing` must lie in \[0, 1\]; got 1.5"),
        (ValueError, (H0, torch.zeros(4, 3), Y0), {}, r"`linear_weight` must have 2 columns, as `input` has; got shape \(4, 3\)"),
        (ValueError, (H0, torch.zeros(0, 2), Y0), {}, r"`linear_weight` must not be empty"),
        (TypeError, (H0.int(), W0, Y0), {}, r"must hold floats; got torch.int32"),
        (ValueError, (H0, W0, Y0[:2]), {}, r"`target` must have one label a sample, \(3,\); got \(2,\)"),
        (ValueError, (H0, W0, torch.zeros(3, 5)), {}, r"`target` must be \(3, 4\) where it holds probabilities; got \(3, 5\)"),
        (TypeError, (H0, W0, Y0 > 0), {}, r"`target` must hold integers or probabilities; got torch.bool"),
        (ValueError, (H0, W0, torch.tensor([0, 4, 1])), {}, r"`target` must lie in 0..3 .* got 4 at index 1"),
        (ValueError, (H0, W0, torch.tensor([0, -1, 1])), {}, r"or be `ignore_index`, -100; got -1 at index 1"),
        (ValueError, (H0, W0, Y0), {"linear_bias": torch.zeros(3)}, r"`linear_bias` must have shape \(4,\); got \(3,\)"),
        (ValueError, (H0, W0, Y0), {"weight": torch.zeros(4, 1)}, r"`weight` must have shape \(4,\); got \(4, 1\)"),
        (ValueError, (H0, W0, Y0), {"weight": torch.zeros(4, device="meta")}, r"`weight` must be on the device of `input`, cpu; got meta"),
        (ValueError, (torch.zeros(3, 1, 2), W0, Y0), {}, r"Flatten sequences to \(N, d\) and their targets to \(N,\)"),
        (ValueError, (H0, W0, torch.zeros(3, 4)), {"ignore_index": 2}, r"`ignore_index` must be left alone when `target` holds probabilities; got 2"),
        (ValueError, (H0, W0, torch.zeros(3, 4, requires_grad=True)), {}, r"`target` must not require a gradient"),
        (ValueError, (H0, W0, Y0), {"weight": torch.ones(4, requires_grad=True)}, r"`weight` must not require a gradient"),
        (ValueError, (H0, torch.zeros(4, 5, 2), Y0), {}, r"`target` must be \(3, 5\); got \(3,\)"),
        (ValueError, (H0, torch.zeros(4, 5, 2), torch.zeros(3, 5, dtype=torch.int64)), {"linear_bias": torch.zeros(4)}, r"`linear_bias` must be \(4, 5\); got \(4,\)"),
    ],
)  # fmt: skip
def test_refusals(error, arguments, options, match):
    with pytest.raises(error, match=match):
        linear_cross_entropy(*arguments, **options)


def test_the_module_refuses():
    with pytest.raises(ValueError, match=r"`weight` must have shape \(4,\); got \(3,\)"):
        LinearCrossEntropyLoss(2, 4, weight=torch.zeros(3))
    with pytest.raises(ValueError, match=r"`reduction` must be"):
        LinearCrossEntropyLoss(2, 4, reduction="avg")


def test_without_torch():
    code = "import sys; sys.modules['torch'] = None; import fastnc, fastnc.nn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: `fastnc.nn` needs torch") and "fastnc[torch]" in last
