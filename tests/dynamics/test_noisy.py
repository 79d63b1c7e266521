"""Noisy descent: its draws, its bits, and the escape of Example 3.1 that plain descent misses."""

import numpy as np
import pytest

import fastnc
from fastnc import reference
from fastnc.dynamics.composition import choose_stepper, composed
from fastnc.theory.example31 import Example31

EXAMPLE = Example31(C=1.0)


def test_an_epoch_is_the_gradient_and_a_draw_for_w_then_for_h():
    model = fastnc.ULPM(n_classes=3, n_per_class=2, dim=4)
    W, H = model.init(0)
    parts = composed(0.3, None, "constant", noise=0.2)
    stepper = choose_stepper(model, W.copy(), H.copy(), parts, seed=7)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, 1])))
    for _ in range(5):
        _, grad_W, grad_H = reference.loss_and_grads(W, H, model.y)
        noise_W, noise_H = rng.standard_normal(W.shape), rng.standard_normal(H.shape)
        W, H = W - 0.3 * (grad_W / 6 + 0.2 * noise_W), H - 0.3 * (grad_H / 6 + 0.2 * noise_H)
    stepper.make(5)
    # Gradients differ in the order of their sums.
    np.testing.assert_allclose(stepper.W, W, atol=1e-14)
    np.testing.assert_allclose(stepper.H, H, atol=1e-14)


def test_example_31_plain_stays_on_the_ray_and_noise_leaves_it():
    W, H = EXAMPLE.W, EXAMPLE.H
    plain = fastnc.descend(EXAMPLE.model, lr=0.5, epochs=20_000, W=W, H=H, snapshots=5)
    # Rounding has a part along the escape too, but grows by less than e over log t = 9.
    np.testing.assert_allclose(plain["margin_ratio"], 0.75, atol=1e-12)
    assert plain["margin"][-1] > 4
    # Noise that stays would outweigh the gradient, which falls like 1/t: let it fall, then go on.
    noisy = fastnc.descend(EXAMPLE.model, lr=0.5, epochs=200, W=W, H=H, noise=0.05, snapshots=5)
    assert np.linalg.matrix_rank(noisy.W @ noisy.H.T, tol=1e-3) >= 3
    for start, ratio in ((plain, 0.75), (noisy, 0.99)):
        run = fastnc.descend(
            EXAMPLE.model, epochs=1500, W=start.W, H=start.H, schedule="loss-scaled", snapshots=2
        )
        reached = run["margin_ratio"][-1]
        assert reached == pytest.approx(0.75, abs=1e-9) if ratio == 0.75 else reached > ratio
    # Collapse, not only a better ratio: cosines of -1/3, and W along the class means.
    assert run["equiangular_classifier"][-1] < 0.02 and run["self_duality"][-1] < 0.1


def test_seeds_and_resumes(tmp_path):
    path = tmp_path / "checkpoint.npz"
    options = {"lr": 0.5, "W": EXAMPLE.W, "H": EXAMPLE.H, "noise": 0.1, "snapshots": 3}
    whole = fastnc.descend(EXAMPLE.model, epochs=90, seed=1, **options)
    other = fastnc.descend(EXAMPLE.model, epochs=90, seed=2, **options)
    assert whole.H.tobytes() != other.H.tobytes()
    for epochs in (1, 40, 90):
        run = fastnc.descend(
            EXAMPLE.model, epochs=epochs, seed=1, **options, checkpoint=path, resume=True
        )
    # The generator's state is in the checkpoint.
    assert run.W.tobytes() == whole.W.tobytes() and run.H.tobytes() == whole.H.tobytes()


def test_small_noisy_steps_are_not_lost_in_float32():
    """Noise was not compensated: of 1e6 epochs the margin lost a fifth."""
    model = EXAMPLE.model
    W, H = (x.astype(np.float32) + 1 for x in model.init(0))
    options = {"lr": 1e-8, "noise": 1.0, "epochs": 3000, "snapshots": 1}
    single = fastnc.descend(model, W=W, H=H, **options)
    double = fastnc.descend(model, W=W.astype(float), H=H.astype(float), **options)
    assert single.W.dtype == np.float32 and np.abs(double.W - W).max() > 5e-7
    # Steps of 1e-8 are below half an ulp of what they move; the end is held to an ulp, below 4.
    np.testing.assert_allclose(single.W, double.W, rtol=0, atol=2.4e-7)


def test_noise_is_a_number_of_at_least_zero():
    with pytest.raises(ValueError, match=r"`noise` must be a number of at least 0; got -0\.1"):
        fastnc.descend(EXAMPLE.model, epochs=5, noise=-0.1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"noise": 1e300}, r"the step `lr`=5 or the noise `noise`=1e\+300 is too large"),
        (
            {"noise": 1e300, "label_noise": 0.1, "batch_size": 2},
            r"`lr`=5 or the noise `noise`=1e\+300 or `label_noise`=0.1 is too large",
        ),
        (
            {"noise": 1e300, "rule": fastnc.rules.Momentum((5.0, 1.0))},
            r"the steps of `lr`=\(5.0, 1.0\) or the noise `noise`=1e\+300 are too large .* smaller",
        ),
    ],
    ids=["alone", "with others", "a pair of steps"],
)
def test_a_divergence_is_laid_to_the_noise_too(options, told):
    with pytest.raises(fastnc.Diverged, match=told):
        fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=50, **options)
