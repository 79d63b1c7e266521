"""What the CPU's engine is given and leaves: layouts, ignored samples, threads, memory."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from nn_problem import REDUCTIONS, expected, problem

from fastnc.nn import linear_cross_entropy

ROOT = Path(__file__).parent.parent.parent


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


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "N, K, d, options",
    [
        (1, 3, 4, {}),
        (20, 3, 4, {}),
        (20, 3, 4, {"return_lse": True}),
        (20, 3, 4, {"softcap": 1e9}),  # torch's operations
        (601, 300, 70, {}),  # several parts, BLAS
    ],
)
@pytest.mark.parametrize("some_ignored", [False, True])
def test_a_mean_over_labels_of_weight_zero_has_no_value_and_no_gradient(
    N, K, d, options, smoothing, some_ignored
):
    """0 / 0 as torch's, whatever the smoothing sums; ignored samples keep gradients of zero."""
    H, W, b, y, v = problem(N, K, d)
    v[0], y[:] = 0.0, 0
    y[1::2] = -100 if some_ignored else 0
    plain = {"weight": v, "label_smoothing": smoothing}
    theirs = expected(H, W, y, b, **plain)
    ours = linear_cross_entropy(H, W, y, linear_bias=b, **plain, **options)
    ours = ours[0] if isinstance(ours, tuple) else ours
    assert theirs.isnan() and ours.isnan()
    grads = [torch.autograd.grad(loss, [H, W, b]) for loss in (ours, theirs)]
    for mine, exact in zip(*grads, strict=True):
        torch.testing.assert_close(mine, exact, equal_nan=True)


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


def test_a_view_that_is_negated_only_in_name():
    """What `.imag` of a conjugate is: its memory holds the numbers with the other sign."""
    H, W, b, y, v = (x.detach() for x in problem())
    negated = [torch._neg_view(-x) for x in (H, W, b, v)]
    assert all(x.is_neg() and x.is_contiguous() for x in negated)
    h, w, c, u = negated
    got = linear_cross_entropy(h, w, y, linear_bias=c, weight=u)
    assert torch.equal(got, linear_cross_entropy(H, W, y, linear_bias=b, weight=v))


def test_gradients_of_many_samples_come_from_large_pages():
    """Above 2^20 numbers memory is NumPy's; what a leaf is handed is a tensor like any other."""
    H, W, b, y, _ = problem(N=270_000, K=3, d=4)
    loss = linear_cross_entropy(H, W, y, linear_bias=b)
    theirs = expected(H, W, y, b)
    for a, e in zip(
        torch.autograd.grad(loss, [H, W, b]), torch.autograd.grad(theirs, [H, W, b]), strict=True
    ):
        # Sums of 270,000 terms in float64, beside the largest entry.
        assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def test_one_ignored_sample_alone():
    H, W, _, _, _ = problem(N=1)
    y = torch.tensor([255], dtype=torch.uint8)
    losses = linear_cross_entropy(H, W, y, ignore_index=255, reduction="none")
    grads = torch.autograd.grad(losses.sum(), [H, W])
    assert losses.tolist() == [0.0] and all((g == 0).all() for g in grads)


@pytest.mark.parametrize("label, ignore_index", [(156, -100), (255, -1)])
def test_labels_of_few_bits_are_compared_as_the_numbers_they_are(label, ignore_index):
    """torch takes a number for one of the tensor's bits: 156 of uint8 equals -100 to it."""
    H, W, _, _, _ = problem(N=2, K=260)
    y = torch.tensor([label, 3], dtype=torch.uint8)
    wanted = torch.nn.functional.cross_entropy(H @ W.T, y.long(), reduction="none")
    each = torch.func.vmap(
        lambda h, t: linear_cross_entropy(h[None], W, t[None], ignore_index=ignore_index)
    )(H.detach(), y)
    # Sums of 5 products and of 260 exponentials in float64.
    torch.testing.assert_close(each, wanted, rtol=1e-13, atol=0.0)
    places = linear_cross_entropy(
        H, torch.stack([W, W], 1), torch.stack([y, y], 1), ignore_index=ignore_index
    )
    torch.testing.assert_close(places, wanted.mean(), rtol=1e-13, atol=0.0)


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


THREADS = """
import torch
from fastnc.nn import linear_cross_entropy

torch.set_num_threads(1)
H, W = torch.randn(6000, 24, requires_grad=True), torch.randn(10, 24)
linear_cross_entropy(H, W, torch.arange(6000) % 10).backward()
print(torch.get_num_threads())
"""


def test_torchs_number_of_threads_is_left_alone():
    """Launching Numba's threads sets the number of the OpenMP that both may share."""
    # More than one, or there is nothing that could be set.
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "NUMBA_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout.split() == ["1"]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
@pytest.mark.parametrize("K, d", [(7, 20), (100, 128), (600, 300)])
def test_a_row_does_not_depend_on_its_company(K, d, options, dtype):
    """From 64 samples on, whatever their number is and wherever the row stands."""
    H, W, b, y, v = problem(330, K, d, dtype=dtype)

    def rows(keep):
        h = H.detach()[keep].requires_grad_()
        given = {"reduction": "none", **options}
        loss = linear_cross_entropy(h, W, y[keep], linear_bias=b, weight=v, **given)
        (grad,) = torch.autograd.grad(loss.sum(), h)
        return grad if loss.dim() == 0 else torch.cat([loss.detach()[:, None], grad], dim=1)

    everything = rows(torch.arange(330))
    for keep in (range(64), range(100, 165), range(33, 300), range(329, -1, -1)):
        keep = torch.tensor(list(keep))
        assert torch.equal(rows(keep), everything[keep]), len(keep)
