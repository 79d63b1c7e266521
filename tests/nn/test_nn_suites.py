"""The shapes, options and tolerances of the suites that other losses are tested by, written anew.

Sources: torch's OpInfo of `nn.functional.linear_cross_entropy` (shapes and options of its samples,
each with a gradient of the gradient, in forward mode and in batches); Apple's Cut Cross-Entropy
(an error no larger than that of the same precision's plain computation); Liger-Kernel and
flash-linear-attention (ignored samples, scales, caps, z-loss, at odd sizes); quack (rows that end
between tiles); optax and scikit-learn (`safe` extremes, log-loss of given probabilities).
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from nn_derivatives import same_derivatives
from nn_problem import REDUCTIONS, expected, problem

from fastnc.nn import linear_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

# Input, linear_weight: OpInfo's, a sample alone, one without a rival beside it, and places.
SHAPES = [
    ((3,), (4, 3)),
    ((8,), (8, 8)),
    ((8, 3), (4, 3)),
    ((4, 2), (2, 1, 2, 1, 2)),
    ((4, 3), (2, 3, 3)),
]
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"weight": True, "reduction": "mean"},
    {"weight": True, "reduction": "sum"},
    {"weight": True, "reduction": "none"},
    {"ignore_index": 1},
    {"linear_bias": True},
    {"linear_bias": True, "weight": True, "reduction": "sum"},
    {"linear_bias": True, "ignore_index": 1, "reduction": "none"},
]


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shapes", SHAPES)
def test_opinfos_samples(shapes, probabilities):
    g = torch.Generator().manual_seed(0)
    made = {"generator": g, "dtype": torch.float64}
    (*batch, _), (K, *places, _) = shapes
    for given in OPTIONS:
        if probabilities and "ignore_index" in given:
            continue
        leaves = [torch.randn(s, **made).requires_grad_() for s in shapes]
        if "linear_bias" in given:
            leaves.append(torch.randn(K, *places, **made).requires_grad_())
        options = {k: v for k, v in given.items() if k != "linear_bias"}
        if "weight" in given:
            options["weight"] = 0.5 + 1.5 * torch.rand(K, **made)
        if probabilities:
            leaves.append(torch.rand(*batch, K, *places, **made).requires_grad_())
        else:
            y = torch.randint(K, (*batch, *places), generator=g)
            # A mean of nothing has another test.
            y.view(-1)[0] = 0

        def parts(tensors, given=given):
            H, W, *others = tensors
            b = others.pop(0) if "linear_bias" in given else None
            return H, W, b, others[0] if probabilities else y  # noqa: B023

        def ours(*tensors, options=options, parts=parts):
            H, W, b, target = parts(tensors)
            return linear_cross_entropy(H, W, target, linear_bias=b, **options)

        def theirs(*tensors, options=options, parts=parts):
            H, W, b, target = parts(tensors)
            flat = W.reshape(math.prod(W.shape[:-1]), W.shape[-1])
            z = F.linear(H, flat, None if b is None else b.reshape(-1))
            return F.cross_entropy(z.reshape(*batch, K, *places), target, **options)

        same_derivatives(ours, theirs, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("N, K, d", [(41, 13, 33), (128, 64, 32), (77, 257, 19)])
def test_no_less_exact_than_the_same_precisions_own(N, K, d, dtype):
    """Entry by entry, as Cut Cross-Entropy is held: within torch's own error and a last place."""
    H, W, b, y, _ = problem(N, K, d, dtype=dtype)
    y[::5] = -100
    wide = [x.detach().double().requires_grad_() for x in (H, W, b)]
    true = expected(wide[0], wide[1], y, wide[2])
    exact = [true, *torch.autograd.grad(true, wide)]
    results = []
    for loss in (linear_cross_entropy(H, W, y, linear_bias=b), expected(H, W, y, b)):
        results.append([loss, *torch.autograd.grad(loss, [H, W, b])])
    for a, t, e in zip(*results, exact, strict=True):
        error, theirs = (a.double() - e).abs(), (t.double() - e).abs()
        if dtype == torch.float32:
            # Both round some hundred times, to a few units of the largest entry.
            assert error.max() <= 8.0 * torch.finfo(dtype).eps * e.abs().max()
            continue
        # Ours is within one unit, or within the most that torch is off by.
        ulp = torch.finfo(dtype).eps * e.abs() + torch.finfo(dtype).smallest_normal
        assert (error <= torch.maximum(ulp, theirs.max() + ulp)).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("N, K, d", [(3, 5, 2), (9, 37, 41), (47, 31, 123)])
def test_scales_caps_and_z_loss_at_odd_sizes(N, K, d, reduction):
    H, W, b, y, _ = problem(N, K, d)
    y[::3] = -100
    for scale, cap, z_loss in itertools.product((None, 0.5), (None, 5.0), (0.0, 1e-4)):
        z = (scale or 1.0) * F.linear(H, W, b)
        z = cap * torch.tanh(z / cap) if cap else z
        each = z_loss * torch.logsumexp(z, 1).square()[y != -100]
        # A sample that is ignored adds nothing, and a mean is over those that are not.
        z_losses = z.new_zeros(N).index_put((torch.nonzero(y != -100).squeeze(1),), each)
        total = {"none": z_losses, "sum": each.sum(), "mean": each.mean()}[reduction]
        theirs = F.cross_entropy(z, y, reduction=reduction) + total
        ours = linear_cross_entropy(
            H, W, y, linear_bias=b, reduction=reduction, logit_scale=scale, softcap=cap,
            z_loss_weight=z_loss,
        )  # fmt: skip
        # Some hundred roundings of logits of order ten.
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
        for a, e in zip(
            *(torch.autograd.grad(x.sum(), [H, W, b]) for x in (ours, theirs)), strict=True
        ):
            assert (a - e).abs().max() <= 1e-11 * e.abs().max()


def test_extremes_and_given_probabilities():
    """Logits of 1e4 either way, and log-loss as scikit-learn's own docstring has it."""
    H = torch.tensor([[1e4], [-1e4]], dtype=torch.float64)
    W = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    y = torch.tensor([0, 0])
    # Nothing overflows; a margin of 2e4 is a loss of 0 to any number of digits a float has.
    assert linear_cross_entropy(H, W, y, reduction="none").tolist() == [0.0, 2e4]
    p = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    loss = linear_cross_entropy(p.log(), eye, torch.tensor([1, 0, 0, 1]))
    # A few roundings of -mean log p.
    wanted = -sum(math.log(x) for x in (0.9, 0.9, 0.8, 0.65)) / 4
    assert loss.item() == pytest.approx(wanted, rel=1e-14)


def test_numbers_of_numpy_and_float64_probabilities():
    np = pytest.importorskip("numpy")
    H, W, _, y, _ = problem(dtype=torch.float32)
    assert torch.equal(linear_cross_entropy(H, W, y, ignore_index=np.int64(3)),
                       linear_cross_entropy(H, W, y, ignore_index=3))  # fmt: skip
    p = torch.full((37, 7), 1 / 7, dtype=torch.float64)
    loss = linear_cross_entropy(H, W, p)
    assert loss.dtype == torch.float64 == expected(H, W, p).dtype
    # Torch takes the logits in float32.
    torch.testing.assert_close(loss, expected(H, W, p), rtol=1e-6, atol=0.0)
    (grad,) = torch.autograd.grad(loss, W)
    assert grad.dtype == torch.float32
