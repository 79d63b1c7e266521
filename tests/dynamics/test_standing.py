"""What a step sees: a schedule's point, the draws of its gradients, rounding as rounding."""

import numpy as np
import pytest
from rule_loops import MODEL, R, gradients

import fastnc
from fastnc.dynamics.randomness import LABELS, NOISE, Stream

START = MODEL.init(0)
LOSS = fastnc.loss(*START, MODEL.y)
SCALE_FREE = {
    "sign": lambda lr: R.SignDescent(lr),
    "normalised": lambda lr: R.NormalizedDescent(lr),
    "spectral": lambda lr: R.SpectralDescent(lr),
    "adam": lambda lr: R.Adam(lr, eps=0.0),
}


class Looking(R.Schedule):
    """A schedule that keeps what it is shown."""

    def at(self, standing):
        self.standing = standing
        return 0.1


@pytest.mark.parametrize("name", SCALE_FREE)
def test_a_schedule_of_the_loss_has_the_gradients_of_the_loss(name):
    """A rule that is given those of log L had its schedule look at them, too."""
    looking = Looking()
    fastnc.descend(MODEL, rule=SCALE_FREE[name](looking), epochs=1)
    for found, want in zip(looking.standing.gradients, gradients(*START, MODEL.y), strict=True):
        # A few ulp.
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-15)
    assert looking.standing.value == pytest.approx(LOSS, rel=1e-14)
    square = sum(np.vdot(g, g) for g in gradients(*START, MODEL.y))
    step = 0.02 * (LOSS - 0.01) / square
    run = fastnc.descend(MODEL, rule=SCALE_FREE[name](R.Polyak(0.01, 0.02)), epochs=1)
    same = fastnc.descend(MODEL, rule=SCALE_FREE[name](step), epochs=1)
    np.testing.assert_allclose(run.W - START[0], same.W - START[0], rtol=1e-12, atol=1e-15)


def test_a_schedule_stands_where_the_gradient_is_taken():
    """Value and gradients were those uphill, the factors were not."""
    looking = Looking()
    fastnc.descend(MODEL, rule=R.SharpnessAware(looking, 0.3), epochs=1)
    grads = gradients(*START, MODEL.y)
    norm = np.sqrt(sum(np.vdot(g, g) for g in grads))
    uphill = [x + 0.3 * g / norm for x, g in zip(START, grads, strict=True)]
    for x, want in zip(looking.standing.factors, uphill, strict=True):
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-14)
    assert looking.standing.value == pytest.approx(fastnc.loss(*uphill, MODEL.y), rel=1e-14)


@pytest.mark.parametrize("noise", [{"label_noise": 0.4}, {"noise": 0.05}])
def test_both_gradients_of_a_step_have_one_draw(noise):
    """The second one of sharpness-aware descent had labels, and noise, of its own."""
    run = fastnc.descend(MODEL, rule=R.SharpnessAware(0.3, 0.1), epochs=5, **noise)
    theta, n = list(START), MODEL.n_samples
    labels, normal = Stream(0, LABELS).draw, Stream(0, NOISE).draw
    for _ in range(5):
        y, added = MODEL.y, [0.0, 0.0]
        if "noise" in noise:
            added = [0.05 * normal.standard_normal(x.shape) for x in theta]
        else:
            flipped, shift = labels.random(n) < 0.4, labels.integers(1, 4, n)
            y = np.where(flipped, (y + shift) % 4, y)
        grads = [g + a for g, a in zip(gradients(*theta, y), added, strict=True)]
        norm = np.sqrt(sum(np.vdot(g, g) for g in grads))
        uphill = [x + 0.1 * g / norm for x, g in zip(theta, grads, strict=True)]
        grads = [g + a for g, a in zip(gradients(*uphill, y), added, strict=True)]
        theta = [x - 0.3 * g for x, g in zip(theta, grads, strict=True)]
    for x, want in zip((run.W, run.H), theta, strict=True):
        # 5 steps of a few ulp.
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spectral_descent_does_not_move_along_rounding(dtype):
    """In float32 the rounding of a zero singular value was a direction of full length."""
    W, H = MODEL.init(0, dtype)
    run = fastnc.descend(MODEL, rule=R.SpectralDescent(0.01), epochs=1, dtype=dtype)
    for x, start in ((run.W, W), (run.H, H)):
        moved = np.linalg.svd(x.astype(float) - start, compute_uv=False)
        # K - 1 = 3 directions; single entries of about 1 are rounded to 6e-8.
        np.testing.assert_allclose(moved, [0.01] * 3 + [0.0] * (len(moved) - 3), rtol=0, atol=1e-6)
    run = fastnc.descend(MODEL, rule=R.SpectralDescent(0.01), epochs=1000, dtype=dtype)
    # The mean classifier is conserved; compensated steps lose an ulp of 1 at most.
    np.testing.assert_allclose(run.W.mean(axis=0), W.mean(axis=0), rtol=0, atol=2e-7)


def test_a_warm_up_needs_a_schedule_of_the_epoch():
    """It ended in a NotImplementedError without a word, at the first epoch."""
    for then in (R.Polyak(0.1), R.Polyak(), R.LossScaled(), Looking()):
        with pytest.raises(ValueError, match="`then` must be a number or a schedule of the epoch"):
            R.WarmUp(then, 5)
    assert R.WarmUp(R.Constant(0.5), 2)(5) == 0.5


def test_a_step_size_is_one_number_however_it_is_written(tmp_path):
    """A resumed run was of another rule where an integer stood for a float."""
    path = tmp_path / "checkpoint.npz"
    assert repr(R.Momentum(5, momentum=0)) == repr(R.Momentum(5.0, momentum=0.0))
    for lr in (5, 5.0, np.float32(5)):
        fastnc.descend(MODEL, rule=R.Momentum(lr), epochs=20, checkpoint=path, resume=True)
