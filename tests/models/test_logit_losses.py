"""Other losses of a ULPM against torch, in the tail against mpmath; their optima; refusals."""

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastnc
from fastnc.models import logit_losses as L

Y = np.array([2, 0, 1, 1, 3, 0, 2])
LOSSES = {
    "squared": ({}, lambda Z, y: (Z - F.one_hot(y, 4)).square().sum() / 2 / len(y)),
    "focal": (
        {"gamma": 1.5},
        lambda Z, y: (
            -((1 - F.softmax(Z, 1)) ** 1.5 * F.log_softmax(Z, 1))
            .gather(1, y[:, None])
            .mean()
        ),
    ),
    "smoothed": ({"label_smoothing": 0.2}, lambda Z, y: F.cross_entropy(Z, y, label_smoothing=0.2)),
}  # fmt: skip
loss = pytest.mark.parametrize("name", LOSSES)


def model_of(name, **options):
    return fastnc.ULPM(4, dim=3, labels=Y, loss=name, **options)


@loss
def test_values_and_gradients_are_torchs(name):
    options, plain = LOSSES[name]
    model = model_of(name, **options)
    W, H = model.init(0)
    blocks = [torch.from_numpy(3.0 * x).requires_grad_() for x in (W, H)]
    value = plain(blocks[1] @ blocks[0].T, torch.from_numpy(Y))
    value.backward()
    g = model.value_and_grads(3.0 * W, 3.0 * H)
    # Rounding.
    assert g.value == pytest.approx(value.item(), rel=1e-13)
    for mine, block in zip((g.W, g.H), blocks, strict=True):
        np.testing.assert_allclose(mine, block.grad.numpy(), atol=1e-14)
    assert model.objective(3.0 * W, 3.0 * H) == g.value
    single = model.value_and_grads(*(x.astype(np.float32) for x in (W, H)))
    assert single.W.dtype == np.float32
    np.testing.assert_allclose(single.W, model.value_and_grads(W, H).W, atol=1e-6)


@pytest.mark.parametrize("gap", [-60.0, -3.0, 0.0, 40.0, 400.0])
def test_the_focal_loss_keeps_its_digits_at_any_margin(gap):
    Z, y, focal = np.array([[gap, 0.0, 1.0]]), np.array([0]), L.Focal(2.0)
    found = focal.of_logits(Z, y, of_log=True)
    with mpmath.workdps(400):
        z = [mpmath.mpf(x) for x in Z[0]]

        def log_loss(*z):
            total = sum(mpmath.exp(x) for x in z)
            wrong = sum(mpmath.exp(x) for x in z[1:]) / total
            return mpmath.log(-(wrong**2) * mpmath.log(1 - wrong))

        exact = float(log_loss(*z))
        slopes = [
            float(
                mpmath.diff(
                    log_loss, z, tuple(int(i == j) for j in range(3)), h=mpmath.mpf(10) ** -150
                )
            )
            for i in range(3)
        ]
    # A few roundings, of logarithms of that size.
    assert found.log_value == pytest.approx(exact, rel=1e-14)
    np.testing.assert_allclose(found.residuals[0], slopes, rtol=1e-12)
    plain = focal.of_logits(Z, y)
    assert plain.value == pytest.approx(np.exp(exact), rel=1e-11)
    np.testing.assert_allclose(plain.residuals[0], plain.value * found.residuals[0], rtol=1e-11)


def test_known_optima():
    sizes = np.bincount(Y)
    squared = model_of("squared").optimum()
    assert squared.value == pytest.approx(1 / 14, rel=1e-14), "three of four classes fit"
    assert model_of("squared").objective(squared.W, squared.H) == pytest.approx(1 / 14, rel=1e-13)
    wide = fastnc.ULPM(4, dim=4, labels=Y, loss="squared")
    best = wide.optimum()
    assert best.value == 0.0 and wide.objective(best.W, best.H) < 1e-30
    # Balanced, W^T W = H^T H.
    np.testing.assert_allclose(best.W.T @ best.W, best.H.T @ best.H, atol=1e-14)
    np.testing.assert_allclose(np.diag(best.gram_W), np.sqrt(sizes), atol=1e-14)
    smoothed = model_of("smoothed", label_smoothing=0.2)
    best = smoothed.optimum()
    t = torch.tensor([0.85, 0.05, 0.05, 0.05], dtype=torch.float64)
    assert best.value == pytest.approx(float(-(t * t.log()).sum()), rel=1e-14)
    g = smoothed.value_and_grads(best.W, best.H)
    assert g.value == pytest.approx(best.value, rel=1e-14)
    assert max(np.abs(g.W).max(), np.abs(g.H).max()) < 1e-15
    # A class without a sample changes nothing.
    absent = fastnc.ULPM(5, dim=5, labels=Y, loss="squared").optimum()
    assert absent.value == 0.0 and np.isfinite(absent.W).all() and np.isfinite(absent.H).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: model_of("hinge"), "`loss` must be 'cross-entropy', 'squared', 'focal' or 'smoo"),
        (lambda: model_of("squared", gamma=1.0), "`gamma` must come with loss='focal'; got loss="),
        (lambda: model_of("focal", gamma=-1.0), "`gamma` must be a number of at least 0; got -1.0"),
        (
            lambda: model_of("smoothed", label_smoothing=0.0),
            r"`label_smoothing` must lie in \(0, 1\); got 0.0. Without any this is cross-entropy",
        ),
        (lambda: model_of("focal").optimum(), "the infimum 0 of the unconstrained model is not at"),
        (
            lambda: fastnc.ULPM(5, 2, 3, loss="smoothed").optimum(),
            "no closed form is known for dim=3",
        ),
        (
            lambda: fastnc.solve(model_of("squared")),
            r"the unconstrained model with loss='squared' is solved by its `optimum\(\)`",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_repr_of_cross_entropy_says_nothing_of_it():
    assert repr(fastnc.ULPM(4, 2, 3)) == "ULPM(n_classes=4, dim=3)"
    assert repr(model_of("focal")) == "ULPM(n_classes=4, dim=3, loss=Focal(gamma=2.0))"
