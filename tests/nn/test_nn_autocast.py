"""Under autocast every product keeps the digits of its operands, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

from fastnc.nn import linear_cross_entropy

# Torch's own forward mode warns of its own scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
N, D = 24, 16
OPTIONS = [
    {}, {"label_smoothing": 0.1}, {"softcap": 5.0}, {"z_loss_weight": 1e-2}, {"return_lse": True},
    {"return_lse": True, "softcap": 4.0, "z_loss_weight": 1e-2}, {"return_entropies": True},
    {"return_predictions": True},
]  # fmt: skip
# Sums of some tens of products in float32; bfloat16 has errors of 1e-2.
CLOSE = 1e-5


def problem(K, kind):
    generator = torch.Generator().manual_seed(K)
    H, W, b = (torch.randn(*s, generator=generator) for s in ((N, D), (K, D), (K,)))
    labels = torch.arange(N) % K
    spread = torch.softmax(torch.randn(N, K, generator=generator), 1)
    return H, W, b, labels if kind == "labels" else spread


def plain(H, W, b, target, options):
    """The losses (N,) and log-sum-exps by torch in float64."""
    z = H @ W.T + b
    if "softcap" in options:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    target = target.double() if target.is_floating_point() else target
    smoothing = options.get("label_smoothing", 0.0)
    losses = F.cross_entropy(z, target, reduction="none", label_smoothing=smoothing)
    lse = z.logsumexp(1)
    return losses + options.get("z_loss_weight", 0.0) * lse.square(), lse


def of(made):
    return made if isinstance(made, torch.Tensor) else made.loss


def close(found, wanted):
    found, wanted = found.detach(), wanted.detach()
    scale = max(float(wanted.abs().max()), 1e-3)
    assert float((found - wanted).abs().max()) < CLOSE * scale


# 24 x 3,000 logits are too many for the single call of few.
@pytest.mark.parametrize("K", [10, 3000])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS)
def test_losses_and_gradients(K, kind, options):
    """A by-product's backward pass within autocast wrote float32 into memory of bfloat16."""
    if kind == "probabilities" and "label_smoothing" in options:
        options = {}
    H, W, b, target = problem(K, kind)
    for reduction in ("mean", "none"):
        wide = [x.double().requires_grad_() for x in (H, W, b)]
        losses, lse = plain(*wide, target, options)
        total = losses.mean() if reduction == "mean" else losses.sum()
        (total + 1e-2 * lse.square().sum() * ("return_lse" in options)).backward()
        for inside in (True, False):
            leaves = [x.clone().requires_grad_() for x in (H, W, b)]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                made = linear_cross_entropy(
                    *leaves[:2], target, linear_bias=leaves[2], reduction=reduction, **options
                )
                total = of(made).sum()
                if "return_lse" in options:
                    total = total + 1e-2 * made.lse.square().sum()
                if inside:
                    total.backward()
            if not inside:
                total.backward()
            close(of(made), losses.mean() if reduction == "mean" else losses)
            for x, want in zip(leaves, wide, strict=True):
                close(x.grad, want.grad)


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("options", [{}, {"z_loss_weight": 1e-2}, {"softcap": 5.0}])
def test_transforms_and_second_derivatives(kind, options):
    H, W, _, target = problem(10, kind)
    wide, zero = H.double(), torch.zeros(10, dtype=torch.float64)
    # Along a vector of ones nothing changes: the logits of a sample are shifted together.
    direction = torch.randn(W.shape, generator=torch.Generator().manual_seed(1))

    def loss(W, H, target):
        return of(linear_cross_entropy(H, W, target, **options))

    def by_torch(W, H, target):
        return plain(H, W, zero, target, options)[0].mean()

    def square(loss, W, H):
        (g,) = torch.autograd.grad(loss(W, H, target), W, create_graph=True)
        return torch.autograd.grad(g.square().sum(), W)[0]

    def each(loss):
        return vmap(grad(lambda W, h, t: loss(W, h[None], t[None])), in_dims=(None, 0, 0))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        slopes = grad(loss)(W, H, target)
        one_by_one = each(loss)(W, H, target)
        _, along = jvp(lambda W: loss(W, H, target), (W,), (direction,))
        again = square(loss, W.clone().requires_grad_(), H)
    close(slopes, grad(by_torch)(W.double(), wide, target))
    close(one_by_one, each(by_torch)(W.double(), wide, target))
    wanted = jvp(lambda W: by_torch(W, wide, target), (W.double(),), (direction.double(),))[1]
    close(along, wanted)
    close(again, square(by_torch, W.double().requires_grad_(), wide))


def test_an_ignored_row_of_nan_with_a_softcap():
    """All of the classifier's gradient was NaN."""
    H, W, _, target = problem(10, "labels")
    H[0], target[0] = torch.nan, -100
    leaf = W.clone().requires_grad_()
    linear_cross_entropy(H, leaf, target, softcap=5.0).backward()
    wanted = W.clone().requires_grad_()
    linear_cross_entropy(H[1:], wanted, target[1:], softcap=5.0).backward()
    close(leaf.grad, wanted.grad)


def test_a_prediction_is_that_of_the_logits_before_their_cap():
    """Capped logits of 84 and 270 are one number, and the first of them was taken."""
    H, W = torch.ones(1, 1), torch.tensor([[28.0], [90.0], [0.0]])
    for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
        made = linear_cross_entropy(H, W, target, softcap=3.0, return_predictions=True)
        assert made.predictions.tolist() == [1]
