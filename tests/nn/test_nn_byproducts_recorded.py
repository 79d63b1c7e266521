"""By-products of the torch loss where operators are recorded: one pass, the same bits."""

import pytest
import torch
from nn_problem import REDUCTIONS, expected, problem
from torch.fx.experimental.proxy_tensor import make_fx

from fastnc.nn import linear_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")

# With softcap, weights, smoothing, a bias and samples that are ignored.
GIVEN = {"return_lse": True, "return_predictions": True, "return_entropies": True}


def _problem(seed=0):
    H, W, b, y, v = problem(N=300, seed=seed)
    y[::7] = -100
    return H, W, b, y, v


def _loss(y, v, reduction, **options):
    def loss(H, W, b):
        made = linear_cross_entropy(
            H, W, y, linear_bias=b, weight=v, reduction=reduction, label_smoothing=0.1,
            z_loss_weight=0.3, logit_scale=0.7, softcap=5.0, **{**GIVEN, **options},
        )  # fmt: skip
        return tuple(made)

    return loss


def _value(loss, lse, _, entropies):
    return loss.sum() + (lse * lse).sum() + entropies.cos().sum()


def _same(ours, theirs, leaves):
    assert all(torch.equal(a, e) for a, e in zip(ours, theirs, strict=True))
    got, wanted = (torch.autograd.grad(_value(*x), leaves) for x in (ours, theirs))
    assert all(torch.equal(a, e) for a, e in zip(got, wanted, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_trace_has_the_same_bits(reduction):
    H, W, b, y, v = _problem()
    loss = _loss(y, v, reduction)
    traced = torch.jit.trace(loss, tuple(x.detach() for x in (H, W, b)))
    leaves = [x.detach().requires_grad_() for x in _problem(seed=1)[:3]]
    _same(traced(*leaves), loss(*leaves), leaves)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_make_fx_records_one_operator(reduction):
    H, W, b, y, v = _problem()
    loss = _loss(y, v, reduction)
    graph = make_fx(loss)(H, W, b)
    assert graph.code.count("torch.ops.fastnc") == 1
    assert "linear_cross_entropy_together.default" in graph.code
    _same(graph(H, W, b), loss(H, W, b), [H, W, b])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_compiled_graph_has_the_same_bits(reduction):
    H, W, b, y, v = _problem()
    loss = _loss(y, v, reduction)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    _same(compiled(H, W, b), loss(H, W, b), [H, W, b])
    torch.compiler.reset()


def test_z_loss_alone_is_recorded_too():
    H, W, _, y, _ = _problem()

    def loss(H, W):
        return linear_cross_entropy(H, W, y, z_loss_weight=0.1)

    graph = make_fx(loss)(H, W)
    assert "linear_cross_entropy_together.default" in graph.code
    ours, theirs = graph(H, W), loss(H, W)
    assert torch.equal(ours, theirs)
    got, wanted = (torch.autograd.grad(x, [H, W]) for x in (ours, theirs))
    assert all(torch.equal(a, e) for a, e in zip(got, wanted, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_recorded_pass_can_be_differentiated_again(reduction):
    H, W, b, y, _ = problem(N=9)
    y[3] = -100
    scale = torch.linspace(0.5, 1.5, 9, dtype=torch.float64)

    def ours(H, W, b):
        loss, lse, _, entropies = linear_cross_entropy(
            H, W, y, linear_bias=b, reduction=reduction, z_loss_weight=0.3, **GIVEN
        )
        return loss.cos().sum() + (scale * lse).cos().sum() + (scale * entropies).sum()

    def theirs(H, W, b):
        z = H @ W.T + b
        lse, counted = torch.logsumexp(z, 1), y != -100
        entropies = torch.distributions.Categorical(logits=z, validate_args=False).entropy()
        lse, entropies = (torch.where(counted, x, 0.0) for x in (lse, entropies))
        loss, z_losses = expected(H, W, y, b, reduction=reduction), 0.3 * lse.square()
        if reduction != "none":
            z_losses = z_losses.sum() / (counted.sum() if reduction == "mean" else 1)
        return (loss + z_losses).cos().sum() + (scale * lse).cos().sum() + (scale * entropies).sum()

    graph = make_fx(ours)(*(x.detach() for x in (H, W, b)))
    found = []
    for f in (graph, theirs, ours):
        grads = torch.autograd.grad(f(H, W, b), [H, W, b], create_graph=True)
        penalty = sum(g.square().sum() for g in grads)
        found.append(torch.autograd.grad(penalty, [H, W, b]))
    for a, e, o in zip(*found, strict=True):
        # Some hundred roundings, beside the largest entry.
        assert (a - e).abs().max() <= 1e-12 * e.abs().max()
        assert (o - e).abs().max() <= 1e-12 * e.abs().max()


@pytest.mark.parametrize("asked", [(True, True, True, 0.1), (False, False, False, 0.1)])
def test_the_operators_keep_torchs_rules(asked):
    H, W, b, y, v = problem(N=9)
    checks = {"test_utils": ("test_schema", "test_faketensor", "test_autograd_registration")}
    for reduction, wanted in (("mean", 7), ("sum", 2), ("none", 7)):
        options = (reduction, -100, 0.1, wanted, 0.0)
        torch.library.opcheck(
            torch.ops.fastnc.linear_cross_entropy_together.default,
            (H, W, b, y, v, *options, *asked), **checks,
        )  # fmt: skip
        by = torch.ones(9, dtype=torch.float64)
        by_loss = by if reduction == "none" else None
        torch.library.opcheck(
            torch.ops.fastnc.linear_cross_entropy_together_backward.default,
            (by_loss, by, None, H, W, b, y, v, *options, 0.1), **checks,
        )  # fmt: skip


class _Head(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        _, W, b, _, _ = problem(N=9)
        self.weight, self.bias = (torch.nn.Parameter(x.detach()) for x in (W, b))
        self.options = options

    def forward(self, H, y):
        made = linear_cross_entropy(H, self.weight, y, linear_bias=self.bias, **self.options)
        return made if isinstance(made, torch.Tensor) else tuple(x for x in made if x is not None)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"return_lse": True}, {"return_predictions": True}, {"z_loss_weight": 0.1},
        {**GIVEN, "reduction": "none", "softcap": 3.0, "logit_scale": 0.7, "label_smoothing": 0.1},
    ],
)  # fmt: skip
def test_an_export_has_the_same_bits_at_any_number_of_samples(options, strict):
    head, n = _Head(**options), torch.export.Dim("n", min=2, max=400)
    H, _, _, y, _ = problem(N=9)
    exported = torch.export.export(
        head, (H.detach(), y), dynamic_shapes=({0: n}, {0: n}), strict=strict
    ).module()
    H, _, _, y, _ = _problem(seed=1)
    ours, theirs = exported(H.detach(), y), head(H.detach(), y)
    ours, theirs = ((x,) if isinstance(x, torch.Tensor) else x for x in (ours, theirs))
    assert all(torch.equal(a, e) for a, e in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_recorded_passes_are_differentiated_by_probabilities_and_weights(reduction):
    H, W, _, _, v = problem(N=9)
    P = torch.softmax(torch.randn(9, 7, dtype=torch.float64), 1)

    def value(H, W, P, v):
        loss, lse, _ = linear_cross_entropy(
            H, W, P, weight=v, reduction=reduction, z_loss_weight=0.3, return_lse=True
        )
        return loss.cos().sum() + lse.cos().sum()

    leaves = [x.detach().clone() for x in (H, W, P, v)]
    graph = make_fx(value)(*leaves)
    for x in leaves:
        x.requires_grad_()
    results = []
    for f in (graph, value):
        first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append((*first, *torch.autograd.grad(penalty, leaves)))
    for a, e in zip(*results, strict=True):
        # Some hundred roundings, beside the largest entry.
        assert (a - e).abs().max() <= 1e-12 * e.abs().max()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_upstream_zeros_without_memory(reduction, softcap):
    H, W, _, y, _ = problem(N=9)
    made = linear_cross_entropy(
        H, W, y, reduction=reduction, z_loss_weight=0.1, softcap=softcap,
        return_lse=True, return_entropies=True,
    )  # fmt: skip
    values = [made.loss, made.lse, made.entropies]
    zeros = [torch._efficientzerotensor(x.shape, dtype=torch.float64) for x in values]
    for g in torch.autograd.grad(values, [H, W], zeros):
        assert (g == 0.0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("N, K, d", [(0, 4, 3), (2, 0, 3), (0, 0, 3), (3, 4, 0)])
def test_no_sample_no_class_or_no_feature(N, K, d, reduction):
    H, W, _, _, _ = problem(N=max(N, 1), K=max(K, 1), d=d)
    H, W = H.detach()[:N].requires_grad_(), W.detach()[:K].requires_grad_()
    y = torch.full((N,), -100 if K == 0 else 1)
    made = linear_cross_entropy(H, W, y, reduction=reduction, z_loss_weight=0.1, **GIVEN)
    assert made.lse.shape == made.entropies.shape == made.predictions.shape == (N,)
    # Of K equal logits, of which the first is taken.
    some = 0.0 if K == 0 else torch.tensor(float(K), dtype=torch.float64).log()
    assert (made.lse == some).all() and (made.entropies - some).abs().sum() <= 1e-15 * N
    assert (made.predictions == (-1 if K == 0 else 0)).all()
    for g in torch.autograd.grad(made.loss.sum() + made.lse.sum(), [H, W]):
        assert (g == 0.0).all()
