"""Derivatives of the torch loss of every kind: against torch's own, differences, and mpmath."""

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nn_derivatives import same_derivatives
from nn_problem import REDUCTIONS, expected, problem

from fastnc.nn import linear_cross_entropy

# Torch's own forward mode scripts its decompositions, which it says is to end.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")


@pytest.mark.parametrize("smoothing, weighted", [(0.0, False), (0.2, True)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_derivative_is_torchs(reduction, smoothing, weighted):
    H, W, b, y, v = problem(N=6, K=4, d=3)
    y[1] = -100
    options = {"reduction": reduction, "label_smoothing": smoothing}
    options["weight"] = v if weighted else None

    def ours(H, W, b):
        return linear_cross_entropy(H, W, y, linear_bias=b, **options)

    def theirs(H, W, b):
        return expected(H, W, y, b, **options)

    same_derivatives(ours, theirs, [H, W, b], kinds=("again", "third", "batched", "forward"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_probabilities_and_their_weights_are_differentiated(reduction):
    H, W, b, _, v = problem(N=6, K=4, d=3)
    p = torch.rand(6, 4, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    v.requires_grad_()

    def ours(H, W, b, p, v):
        return linear_cross_entropy(
            H, W, p, linear_bias=b, weight=v, reduction=reduction, label_smoothing=0.1
        )

    def theirs(H, W, b, p, v):
        return expected(H, W, p, b, weight=v, reduction=reduction, label_smoothing=0.1)

    same_derivatives(ours, theirs, [H, W, b, p, v])


@pytest.mark.parametrize("smoothing, weighted", [(0.0, False), (0.2, True)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradgradcheck(reduction, smoothing, weighted):
    """By differences, with batches, forward mode and forward over reverse mode."""
    H, W, b, y, v = problem(N=3, K=3, d=2)
    y[1] = -100

    def loss(H, W, b):
        return linear_cross_entropy(
            H, W, y, linear_bias=b, weight=v if weighted else None, reduction=reduction,
            label_smoothing=smoothing,
        )  # fmt: skip

    assert torch.autograd.gradcheck(
        loss, (H, W, b), check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(
        loss, (H, W, b), check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("extra", [{"softcap": 2.0}, {"z_loss_weight": 0.3}])
def test_gradgradcheck_of_what_peers_add(extra):
    H, W, b, y, _ = problem(N=3, K=3, d=2)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def loss(H, W, b, scale):
        return linear_cross_entropy(H, W, y, linear_bias=b, logit_scale=scale, **extra)

    assert torch.autograd.gradcheck(loss, (H, W, b, scale), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (H, W, b, scale))


def test_the_upstream_gradient_alone():
    H, W, _, y, _ = problem()
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(H, W, y, reduction=reduction)
        upstream = torch.rand_like(loss, requires_grad=True)
        (g,) = torch.autograd.grad(loss, H, upstream, create_graph=True)
        (by,) = torch.autograd.grad(g.sum(), upstream)
        theirs = expected(H, W, y, reduction=reduction)
        (e,) = torch.autograd.grad(theirs, H, upstream, create_graph=True)
        (wanted,) = torch.autograd.grad(e.sum(), upstream)
        # Some hundred roundings.
        torch.testing.assert_close(by, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_penalty_and_hessian_product(reduction):
    """By the Hessian kernel, with samples that are ignored and a bias, to 1e-12."""
    H, W, b, y, _ = problem(N=300, K=11, d=20)
    y[::7] = -100
    got, wanted = [], []
    for out, f in ((got, linear_cross_entropy), (wanted, expected)):
        loss = f(H, W, y, linear_bias=b, reduction=reduction)
        grads = torch.autograd.grad(loss, [H, W, b], create_graph=True)
        penalty = loss + sum(g.square().sum() for g in grads)
        out.extend(torch.autograd.grad(penalty, [H, W, b]))
    for a, e in zip(got, wanted, strict=True):
        # What the issue asks for, beside the largest entry.
        assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def test_functional_transforms():
    H, W, b, y, _ = (x.detach() for x in problem(N=6, K=4, d=3))

    def ours(W, b):
        return linear_cross_entropy(H, W, y, linear_bias=b)

    def theirs(W, b):
        return F.cross_entropy(F.linear(H, W, b), y)

    func, both = torch.func, (0, 1)
    for transform in (
        lambda f: func.grad(f, both)(W, b),
        lambda f: func.jvp(f, (W, b), (W.cos(), b.cos())),
        lambda f: func.jacfwd(func.jacrev(f, both), both)(W, b),
        lambda f: func.jacrev(func.jacrev(f, both), both)(W, b),
        lambda f: func.hessian(f)(W, b),
        lambda f: func.grad(lambda W, b: func.jvp(f, (W, b), (W, b))[1], both)(W, b),
    ):
        got, wanted = (torch.utils._pytree.tree_leaves(transform(f)) for f in (ours, theirs))
        for a, e in zip(got, wanted, strict=True):
            # Some hundred roundings.
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_linearize():
    """Torch's own warns of the constants that it folds."""
    H, W, _, y, _ = (x.detach() for x in problem(N=6, K=4, d=3))
    _, tangent = torch.func.linearize(lambda W: linear_cross_entropy(H, W, y), W)
    wanted = torch.func.jvp(lambda W: F.cross_entropy(H @ W.T, y), (W,), (W.cos(),))[1]
    # Some hundred roundings.
    torch.testing.assert_close(tangent(W.cos()), wanted, rtol=1e-12, atol=0.0)


def test_gradients_for_each_sample():
    H, W, _, y, _ = (x.detach() for x in problem(N=6, K=4, d=3))
    each = torch.vmap(torch.func.grad(linear_cross_entropy, (0, 1)), (0, None, 0))(H, W, y)
    for i in range(6):
        h, w = H[i].clone().requires_grad_(), W.clone().requires_grad_()
        alone = torch.autograd.grad(linear_cross_entropy(h, w, y[i]), [h, w])
        for a, e in zip(each, alone, strict=True):
            # A few roundings of numbers of order one.
            torch.testing.assert_close(a[i], e, rtol=1e-13, atol=1e-15)
    rows = torch.vmap(lambda w: linear_cross_entropy(H, w, y))(torch.stack([W, 2 * W]))
    torch.testing.assert_close(rows[1], linear_cross_entropy(H, 2 * W, y), rtol=1e-13, atol=0.0)


def test_forward_mode_by_torchs_own_names():
    H, W, _, y, _ = (x.detach() for x in problem(N=6, K=4, d=3))

    def ours(W):
        return linear_cross_entropy(H, W, y)

    wanted = torch.func.grad(lambda W: F.cross_entropy(H @ W.T, y))(W)
    forward = torch.autograd.functional.jacobian(ours, W, strategy="forward-mode", vectorize=True)
    # Some hundred roundings.
    torch.testing.assert_close(forward, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("margin", [-30.0, 0.5, 40.0, 150.0, 340.0])
def test_second_derivatives_keep_their_digits(margin):
    """diag(p) - p p^T, whose entries beside the label's are of the size of 1 - p_y."""
    z = np.array([margin, 0.0, -0.25])
    W = torch.from_numpy(z)[:, None]
    H, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    got = [torch.func.hessian(lambda W: linear_cross_entropy(H, W, y))(W)[:, 0, :, 0]]
    leaf = W.clone().requires_grad_()
    (g,) = torch.autograd.grad(linear_cross_entropy(H, leaf, y), leaf, create_graph=True)
    rows = [torch.autograd.grad(g[j, 0], leaf, retain_graph=True)[0][:, 0] for j in range(3)]
    got.append(torch.stack(rows))
    mpmath.mp.dps = 400
    e = [mpmath.exp(mpmath.mpf(x)) for x in z]
    p = [x / sum(e) for x in e]
    for i in range(3):
        for j in range(3):
            true = p[i] * (1 - p[i]) if i == j else -p[i] * p[j]
            for matrix in got:
                error = abs(mpmath.mpf(matrix[i, j].item()) - true)
                # In the tail every entry to some units in its last place, of logits that are
                # multiples of 1/4; elsewhere 1 - p of a class cancels, and entries are right beside
                # the largest.
                assert error <= 1e-14 * (abs(true) if margin > 30 else 1)
