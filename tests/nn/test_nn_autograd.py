"""The torch loss inside torch: autograd, `torch.func`, `torch.compile`, checkpointing."""

import itertools

import pytest
import torch
from nn_problem import REDUCTIONS, expected, problem

from fastnc.nn import linear_cross_entropy


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
            (H, W, b, y, v, reduction, -100, 0.1, wanted, 0.0),
            test_utils=("test_schema", "test_faketensor"),
        )


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


def test_activation_checkpointing():
    H, W, _, y, _ = problem()
    direct = torch.autograd.grad(linear_cross_entropy(H, W, y), [H, W])
    loss = torch.utils.checkpoint.checkpoint(linear_cross_entropy, H, W, y, use_reentrant=False)
    again = torch.autograd.grad(loss, [H, W])
    assert all(torch.equal(a, e) for a, e in zip(again, direct, strict=True))


def test_one_tensor_is_features_and_classifier():
    X = torch.randn(5, 5, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    ours = linear_cross_entropy(X, X, torch.arange(5))
    theirs = torch.nn.functional.cross_entropy(X @ X.T, torch.arange(5))
    (a,), (e,) = torch.autograd.grad(ours, X), torch.autograd.grad(theirs, X)
    # Some roundings of numbers of order one.
    assert (a - e).abs().max() < 1e-14


def test_forward_gradients_are_of_what_was_given():
    """Changed in place afterwards: a mean keeps its gradients, a second pass is refused."""
    H, W, _, y, _ = problem()
    wanted = torch.autograd.grad(linear_cross_entropy(H, W, y), H)[0]
    features = H * 1.0
    loss = linear_cross_entropy(features, W, y)
    features.add_(1.0)
    (got,) = torch.autograd.grad(loss, H, retain_graph=True)
    assert torch.equal(got, wanted)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        torch.autograd.grad(loss, H)


def test_the_default_device_is_not_where_it_computes():
    H, W, b, y, _ = problem()
    with torch.device("meta"):
        loss = linear_cross_entropy(H, W, y, linear_bias=b)
    assert torch.equal(loss, linear_cross_entropy(H, W, y, linear_bias=b))


def test_autocast_with_weights_smoothing_and_bias():
    H, W, b, y, v = problem(dtype=torch.float32)
    options = {"weight": v, "label_smoothing": 0.1}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(H.bfloat16(), W, y, linear_bias=b, **options)
    plain = expected(H.bfloat16().float(), W, y, b, **options)
    assert loss.dtype == torch.float32
    # The features are the same; everything after them is in float32.
    torch.testing.assert_close(loss, plain, rtol=2e-6, atol=0.0)
    for a, e in zip(
        torch.autograd.grad(loss, [W, b]), torch.autograd.grad(plain, [W, b]), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-7)
