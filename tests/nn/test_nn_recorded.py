"""The torch loss where operators are recorded, and tensors that have no memory of their own."""

import pytest
import torch
import torch.nn.functional as F
from nn_problem import REDUCTIONS, expected, problem
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastnc.nn import LinearCrossEntropyLoss, linear_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")


def _other():
    """A second problem of the same shape: what is recorded must not be the first's answer."""
    H, W, b, _, _ = (x.detach() for x in problem(seed=1))
    return H, W, b


def _probabilities():
    logits = torch.randn(37, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.softmax(logits, 1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_trace_computes_and_has_gradients(reduction):
    H, W, b, y, v = problem()
    H, W, b = (x.detach() for x in (H, W, b))

    def loss(H, W, b, y):
        return linear_cross_entropy(H, W, y, linear_bias=b, weight=v, reduction=reduction)

    traced = torch.jit.trace(loss, (H, W, b, y))
    # Nothing required a gradient while it was traced.
    leaves = [x.requires_grad_() for x in _other()]
    got, wanted = traced(*leaves, y), loss(*leaves, y)
    assert torch.equal(got, wanted)
    got, wanted = (torch.autograd.grad(x.sum(), leaves) for x in (got, wanted))
    assert all(torch.equal(a, e) for a, e in zip(got, wanted, strict=True))


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_make_fx_records_the_operator(reduction, mode):
    H, W, b, y, _ = (x.detach() for x in problem())

    def loss(H, W, b, y):
        return linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction)

    graph = make_fx(loss, tracing_mode=mode)(H, W, b, y)
    assert "fastnc.linear_cross_entropy" in graph.code
    assert torch.equal(graph(*_other(), y), loss(*_other(), y))


def test_gradients_of_what_was_recorded_without_any():
    """`wanted` is a constant of the graph, and what is wanted later is made all the same."""
    H, W, _, y, _ = (x.detach() for x in problem())
    graph = make_fx(lambda H, W: linear_cross_entropy(H, W, y))(H, W)
    leaves = [x.requires_grad_() for x in _other()[:2]]
    got = torch.autograd.grad(graph(*leaves), leaves)
    for a, e in zip(got, torch.autograd.grad(expected(*leaves, y), leaves), strict=True):
        # Some hundred roundings.
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("record", [torch.jit.trace, lambda f, given: make_fx(f)(*given)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_was_recorded_is_differentiated_by_probabilities_and_weights(reduction, record):
    """They required no gradient then; one that was asked for later was None, without a word."""
    H, W, _, y, v = problem()
    P = _probabilities()
    options = {"reduction": reduction, "label_smoothing": 0.1}

    def of_classes(H, W, v):
        return linear_cross_entropy(H, W, y, weight=v, **options).square().sum()

    def of_probabilities(H, W, v, P):
        return linear_cross_entropy(H, W, P, weight=v, **options).square().sum()

    for loss, given in ((of_classes, (H, W, v)), (of_probabilities, (H, W, v, P))):
        leaves = [x.detach().clone() for x in given]
        recorded = record(loss, tuple(leaves))
        for x in leaves:
            x.requires_grad_()
        results = []
        for f in (recorded, loss):
            first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
            penalty = sum(g.square().sum() for g in first)
            results.append((*first, *torch.autograd.grad(penalty, leaves)))
        for a, e in zip(*results, strict=True):
            # Some hundred roundings, beside the largest entry.
            assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def test_a_trace_of_differentiated_probabilities_passes_its_own_check():
    """What a trace is checked by does not require gradients, and was another graph."""
    H, W, _, _, _ = problem()
    P = _probabilities().requires_grad_()
    traced = torch.jit.trace(linear_cross_entropy, (H, W, P))
    # One computes by kernels, the other by the formula: a few roundings.
    torch.testing.assert_close(traced(H, W, P), linear_cross_entropy(H, W, P), rtol=1e-14, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_labels_are_looked_at_within_transforms():
    H, W, _, y, _ = (x.detach() for x in problem())
    y = y.clone()
    y[3] = 7

    def of_one(h, label):
        return linear_cross_entropy(h[None], W, label[None])

    def loss(H):
        return linear_cross_entropy(H, W, y)

    for call in (
        lambda: torch.func.jvp(loss, (H,), (H,)),
        lambda: torch.func.grad(loss)(H),
        lambda: torch.func.vmap(of_one)(H, y),
        lambda: torch.func.vmap(torch.func.grad(of_one))(H, y),
        lambda: torch.func.vmap(lambda H: linear_cross_entropy(H, W, y, return_lse=True))(H[None]),
    ):
        with pytest.raises(IndexError, match=r"`target` must lie in 0\.\.6 .* got 7 at index 3\."):
            call()


def test_what_was_recorded_still_looks_at_shapes():
    H, W, _, y, _ = (x.detach() for x in problem())
    traced = torch.jit.trace(linear_cross_entropy, (H, W, y))
    with pytest.raises(RuntimeError, match=r"`linear_weight` must have 4 columns"):
        traced(H[:, :4], W, y)
    with pytest.raises(RuntimeError, match=r"must be \(N, d\) and \(K, d\)"):
        traced(H, W[0], y)


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operator():
    H, W, _, y, _ = problem()
    with _Names() as names:
        loss = linear_cross_entropy(H, W, y)
    assert "fastnc.linear_cross_entropy.default" in names.seen
    assert torch.equal(loss, linear_cross_entropy(H, W, y))


def test_the_operator_can_be_differentiated_again():
    H, W, b, y, _ = problem()
    got = []
    for reduction in REDUCTIONS:
        with _Names():
            loss = linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction)
        for value in (loss, expected(H, W, y, b, reduction=reduction)):
            grads = torch.autograd.grad(value.square().sum(), [H, W, b], create_graph=True)
            got.append(torch.autograd.grad(sum(g.square().sum() for g in grads), [H, W, b]))
        for a, e in zip(*got[-2:], strict=True):
            # Some hundred roundings, beside the largest entry.
            assert (a - e).abs().max() <= 1e-12 * e.abs().max()


def test_export_and_eager_agree_to_the_bit():
    head = LinearCrossEntropyLoss(5, 7, bias=True, label_smoothing=0.1, dtype=torch.float64)
    H, _, _, y, _ = (x.detach() for x in problem())
    exported = torch.export.export(head, (H, y)).module()
    assert torch.equal(exported(*_other()[:1], y), head(*_other()[:1], y))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("given", [{}, {"reduction": "none"}, {"return_lse": True}])
def test_compiled_autograd_is_one_graph(given, again):
    """A look at the upstream gradient would break it, at its value or for a batch."""
    H, W, _, y, _ = problem()

    def value():
        made = linear_cross_entropy(H, W, y, **given)
        return 0.5 * (made.loss + made.lse.sum() if "return_lse" in given else made.sum())

    wanted = torch.autograd.grad(value(), [H, W])
    loss = value()
    if again:
        torch.autograd.grad(loss, [H, W], retain_graph=True)
    compiler = torch.compile(backend="eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        loss.backward()
    torch.compiler.reset()
    for x, e in zip((H, W), wanted, strict=True):
        # Where kernels cannot be reached the formula has it: some roundings.
        torch.testing.assert_close(x.grad, e, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("which", ["input", "linear_weight", "linear_bias", "weight", "upstream"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_zeros_without_memory(reduction, which):
    """They have no address: by theirs, a kernel would read at 0."""
    H, W, b, y, v = problem()
    tensors = {"input": H, "linear_weight": W, "linear_bias": b, "weight": v}
    tensors["upstream"] = torch.ones_like(expected(H, W, y, reduction=reduction)).detach()
    results = []
    for zeros in (torch._efficientzerotensor, torch.zeros):
        given = {k: x.detach().clone() for k, x in tensors.items()}
        given[which] = zeros(given[which].shape, dtype=torch.float64)
        leaf = given["linear_bias" if which == "linear_weight" else "linear_weight"]
        leaf.requires_grad_()
        upstream = given.pop("upstream")
        loss = linear_cross_entropy(target=y, reduction=reduction, **given)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf, upstream)))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=0.0, atol=0.0, equal_nan=True)


def test_meta_tensors_have_a_loss_without_numbers():
    H, W, b, y, _ = (x.detach().to("meta") for x in problem())
    for reduction, shape in (("mean", ()), ("none", (37,))):
        loss = linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction)
        assert loss.shape == shape and loss.is_meta and loss.dtype == torch.float64


class _Own(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is linear_cross_entropy:
            return "mine"
        return super().__torch_function__(func, types, args, kwargs)


def test_a_subclass_may_take_over():
    H, W, _, y, _ = (x.detach() for x in problem())
    assert linear_cross_entropy(H.as_subclass(_Own), W, y) == "mine"
    assert linear_cross_entropy(H, W, y, weight=torch.ones(7).as_subclass(_Own)) == "mine"


def test_further_dimensions_with_nothing_that_counts():
    """NaN, as torch's mean of nothing is, with gradients of zero."""
    H, _, _, _, _ = problem(N=6, d=3)
    W = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    empty = torch.zeros(4, 0, 3, dtype=torch.float64, requires_grad=True)
    for weight, target in (
        (W, torch.full((6, 2), -100)),
        (empty, torch.zeros(6, 0, dtype=torch.int64)),
        (empty, torch.zeros(6, 4, 0, dtype=torch.float64)),
    ):
        for reduction in REDUCTIONS:
            loss = linear_cross_entropy(H, weight, target, reduction=reduction)
            assert bool(loss.isnan().all()) == (reduction == "mean" or not loss.numel())
            for g in torch.autograd.grad(loss.sum(), [H, weight]):
                assert (g == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_class_or_no_feature(reduction):
    """As torch has them."""
    for N, K, d, labels in ((3, 4, 0, [0, 3, -100]), (2, 0, 3, [-100, -100]), (0, 0, 3, [])):
        H, W, b, _, v = problem(N=N, K=max(K, 1), d=d)
        W, b, v = (x.detach()[:K].requires_grad_() for x in (W, b, v))
        y = torch.tensor(labels, dtype=torch.int64)
        ours = linear_cross_entropy(H, W, y, linear_bias=b, reduction=reduction)
        theirs = F.cross_entropy(F.linear(H, W, b), y, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0.0, equal_nan=True)
        got, wanted = (torch.autograd.grad(x.sum(), [H, W, b]) for x in (ours, theirs))
        for a, e in zip(got, wanted, strict=True):
            # A few roundings of numbers below one.
            torch.testing.assert_close(a, e, rtol=1e-14, atol=1e-15)
