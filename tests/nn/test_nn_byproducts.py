"""Log-sum-exp, predictions, entropies, z-loss, scale and cap of the torch loss, written out."""

import pytest
import torch
import torch.nn.functional as F
from nn_problem import REDUCTIONS, problem

from fastnc.nn import LinearCrossEntropyLoss, linear_cross_entropy


def _written_out(H, W, y, b, *, scale=1.0, cap=None, z_loss_weight=0.0, v=None, **options):
    """Loss, lse, predictions, entropies from all logits, as PaLM, Gemma and Liger have them."""
    z = scale * F.linear(H, W, b)
    z = z if cap is None else cap * torch.tanh(z / cap)
    lse = torch.logsumexp(z, 1)
    log_p = z - lse[:, None]
    entropies = -(log_p.exp() * log_p).sum(1)
    loss = F.cross_entropy(z, y, weight=v, **options)
    counted = torch.ones(len(y), dtype=torch.bool) if y.dim() == 2 else y != -100
    each = torch.where(counted, z_loss_weight * lse.square(), 0.0)
    extra = {"none": each, "sum": each.sum(), "mean": each.sum() / counted.sum()}
    loss = loss + extra[options["reduction"]]
    lse, entropies = (torch.where(counted, x, 0.0) for x in (lse, entropies))
    return loss, lse, z.argmax(1), entropies


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["plain", "weighted", "probabilities"])
@pytest.mark.parametrize("cap, scale", [(None, None), (3.0, 0.7)])
def test_values_and_gradients(reduction, kind, cap, scale):
    H, W, b, y, v = problem()
    y[5] = -100
    options = {"reduction": reduction}
    if kind == "weighted":
        options["label_smoothing"] = 0.1
    if kind == "probabilities":
        y = torch.rand(37, 7, dtype=torch.float64, generator=torch.manual_seed(0)).softmax(1)
    v = None if kind == "plain" else v
    made = linear_cross_entropy(
        H, W, y, linear_bias=b, weight=v, z_loss_weight=0.3, logit_scale=scale, softcap=cap,
        return_lse=True, return_predictions=True, return_entropies=True, **options,
    )  # fmt: skip
    assert made._fields == ("loss", "lse", "predictions", "entropies")
    true = _written_out(H, W, y, b, scale=scale or 1.0, cap=cap, z_loss_weight=0.3, v=v, **options)
    assert torch.equal(made.predictions, true[2])
    for a, e in ((made.loss, true[0]), (made.lse, true[1]), (made.entropies, true[3])):
        # Some hundred roundings of numbers of order ten.
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)
        got, wanted = (
            torch.autograd.grad(x.cos().sum(), [H, W, b], retain_graph=True) for x in (a, e)
        )
        for g, t in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, t, rtol=1e-11, atol=1e-12)


def test_one_tuple_for_what_is_asked_for():
    H, W, _, y, _ = problem()
    loss = linear_cross_entropy(H, W, y)
    made = linear_cross_entropy(H, W, y, return_lse=True)
    assert made._fields == ("loss", "lse", "predictions") and made.predictions is None
    # Two orders of adding 37 losses.
    torch.testing.assert_close(made.loss, loss, rtol=1e-14, atol=0.0)
    made = linear_cross_entropy(H, W, y, return_predictions=True)
    assert made.lse is None and made.predictions.dtype == torch.int64
    assert isinstance(linear_cross_entropy(H, W, y, z_loss_weight=0.1), torch.Tensor)
    one = linear_cross_entropy(H[0], W, y[0], reduction="none", return_lse=True)
    assert one.loss.shape == one.lse.shape == ()


def test_options_that_say_how_to_save_memory_are_taken():
    H, W, _, y, _ = problem()
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no LinearCrossEntropyOptions")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    assert torch.equal(linear_cross_entropy(H, W, y, options=options),
                       linear_cross_entropy(H, W, y))  # fmt: skip


def test_many_samples_in_blocks():
    """More logits than a block has, differentiated through entropies too."""
    H, W, b, y, _ = problem(N=1200, K=1000, d=6)
    made = linear_cross_entropy(H, W, y, linear_bias=b, return_predictions=True,
                                return_entropies=True)  # fmt: skip
    true = _written_out(H, W, y, b, reduction="mean")
    assert torch.equal(made.predictions, true[2])
    # Some thousand roundings.
    torch.testing.assert_close(made.entropies, true[3], rtol=1e-12, atol=1e-12)
    for a, e in zip(*(torch.autograd.grad(x.sum(), [H, W, b], retain_graph=True)
                      for x in (made.entropies, true[3])), strict=True):  # fmt: skip
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-11)


def test_an_ignored_sample_may_hold_anything():
    H, W, b, y, _ = problem()
    y[3] = -100
    with torch.no_grad():
        H[3] = float("nan")
    made = linear_cross_entropy(H, W, y, linear_bias=b, return_lse=True, z_loss_weight=0.1)
    assert made.lse[3] == 0
    grads = torch.autograd.grad(made.loss + made.lse.sum(), [H, W, b])
    assert all(torch.isfinite(g).all() for g in grads)


def test_entropies_keep_their_digits():
    """At a margin of 60, where `lse - sum p z` has none: e^-60 (60 + 1), nearly."""
    H = torch.ones(1, 1, dtype=torch.float64)
    W = torch.tensor([[60.0], [0.0]], dtype=torch.float64)
    made = linear_cross_entropy(H, W, torch.tensor([0]), return_entropies=True)
    q = torch.exp(torch.tensor(-60.0, dtype=torch.float64))
    # A few units in the last place; terms of q^2 are 1e-26 of it.
    torch.testing.assert_close(made.entropies[0], q * 61.0, rtol=1e-14, atol=0.0)


def test_a_cap_that_levels_off_keeps_the_gradients_digits():
    """4 e / (1 + e)^2 of a logit 15 caps high, where 1 - tanh^2 has three digits left."""
    H = torch.ones(1, 1, dtype=torch.float64)
    W = torch.tensor([[30.0], [0.0]], dtype=torch.float64, requires_grad=True)
    loss = linear_cross_entropy(H, W, torch.tensor([0]), softcap=2.0)
    (grad,) = torch.autograd.grad(loss, W, create_graph=True)
    e = torch.exp(torch.tensor(-30.0, dtype=torch.float64))
    r = 1.0 / (1.0 + torch.exp(2.0 * (1.0 - e) / (1.0 + e)))
    # A few roundings.
    torch.testing.assert_close(grad[0, 0], -r * 4.0 * e / (1.0 + e) ** 2, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """At three places too, whose gradients once met in half precision."""
    g = torch.Generator().manual_seed(0)
    H = torch.randn(40, 8, generator=g).to(dtype).requires_grad_()
    W = torch.randn(5, 3, 8, generator=g).to(dtype).requires_grad_()
    y = torch.randint(5, (40, 3), generator=g)
    loss = linear_cross_entropy(H, W, y, reduction="sum")
    wide = [x.detach().double().requires_grad_() for x in (H, W)]
    true = F.cross_entropy(torch.einsum("nd,kpd->nkp", *wide), y, reduction="sum")
    assert loss.dtype == dtype
    got = torch.autograd.grad(loss, [H, W])
    for a, e in zip((loss, *got), (true, *torch.autograd.grad(true, wide)), strict=True):
        # Half a unit in the last place, of numbers that float32 has right to some 1e-6.
        bound = torch.finfo(dtype).eps / 2 * e.abs() + 4e-6 * e.abs().max()
        assert ((a.double() - e).abs() <= bound).all()


def test_the_module_hands_it_all_on():
    head = LinearCrossEntropyLoss(5, 7, z_loss_weight=0.1, softcap=3.0, return_lse=True)
    H, _, _, y, _ = problem(dtype=torch.float32)
    made = head(H, y)
    true = _written_out(H, head.linear.weight, y, None, cap=3.0, z_loss_weight=0.1,
                        reduction="mean")  # fmt: skip
    # float32: some ten roundings.
    torch.testing.assert_close(made.loss, true[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(made.lse, true[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("K, N", [(1, 9), (7, 64), (700, 90)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_few_logits_are_as_many_are(K, N, smoothing):
    """One more sample that is to be ignored, and torch's operations take the kernel's place."""
    H, W, b, y, v = problem(N=N + 1, K=K)
    y[N] = -100
    found = []
    for n in (N, N + 1):
        made = linear_cross_entropy(
            H[:n], W, y[:n], linear_bias=b, weight=v, label_smoothing=smoothing, z_loss_weight=0.3,
            return_lse=True, return_predictions=True, return_entropies=True,
        )  # fmt: skip
        value = made.loss + made.lse.cos().sum() + made.entropies.sin().sum()
        found.append([*(x[:N] if x.dim() else x for x in made),
                      *torch.autograd.grad(value, [H, W, b])])  # fmt: skip
    for few, many in zip(*found, strict=True):
        # Some hundred roundings of numbers of order ten.
        torch.testing.assert_close(few, many, rtol=1e-12, atol=1e-12)


def test_entropies_of_many_classes_are_summed_exactly():
    """All alike: log 50000, where one number after another loses four digits."""
    W = torch.zeros(50_000, 1, dtype=torch.float64)
    made = linear_cross_entropy(W[:1] + 1, W, torch.tensor([0]), return_entropies=True)
    true = torch.log(torch.tensor(50_000.0, dtype=torch.float64))
    # A few units in the last place.
    torch.testing.assert_close(made.entropies[0], true, rtol=1e-15, atol=0.0)
