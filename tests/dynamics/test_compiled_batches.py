"""Minibatches in the compiled loop: the NumPy loop's steps, its generator, its bits in a sweep."""

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.gradients import MiniBatch
from fastnc.dynamics.steppers import batches

R = fastnc.rules
Y = np.array([3, 0, 3, 3, 1, 0, 3, 1, 1, 0, 3, 3, 1])
MODEL = fastnc.ULPM(4, dim=3, labels=Y)


@pytest.mark.parametrize("size", [1, 5, 13])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_compiled_loop_and_the_numpy_one_agree(size, dtype, monkeypatch):
    """13 samples in batches of 1, of 4 or 5, and of all; an absent class; a size a factor."""
    options = {
        "lr": (R.Cosine(0.5, 60), 0.8), "epochs": 60, "batch_size": size, "dtype": dtype,
        "snapshots": 2, "seed": 4,
    }  # fmt: skip
    rule = R.GradientDescent(options["lr"])
    assert batches.serves(MODEL, rule, MiniBatch(Y, size, False, 0))
    run = fastnc.descend(MODEL, **options)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "serves", lambda model, rule, source: False)
        other = fastnc.descend(MODEL, **options)
    # A few ulp a step; float32 carries what its updates lose, and rounds its gradients.
    atol = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(run.W, other.W, rtol=0, atol=atol)
    np.testing.assert_allclose(run.H, other.H, rtol=0, atol=atol)


def test_a_frozen_factor_stays_and_a_sweep_has_the_bits_of_each_alone(tmp_path):
    options = {"batch_size": 5, "snapshots": 2, "dtype": "float32"}
    for freeze in ("W", "H"):
        run = fastnc.descend(MODEL, 0.5, 30, freeze=freeze, **options)
        start = dict(zip("WH", MODEL.init(0, "float32"), strict=True))
        assert np.array_equal(getattr(run, freeze), start[freeze])
    runs = fastnc.sweep(MODEL, [0.5, 0.1], 300, [0, 7], threads=2, **options)
    alone = fastnc.descend(MODEL, 0.1, 300, 7, **options)
    assert runs[3].W.tobytes() == alone.W.tobytes() and runs[3].H.tobytes() == alone.H.tobytes()
    path = tmp_path / "checkpoint.npz"
    for epochs in (1, 77, 300):
        again = fastnc.descend(MODEL, 0.1, epochs, 7, **options, checkpoint=path, resume=True)
    assert again.H.tobytes() == alone.H.tobytes()


@pytest.mark.parametrize(
    ("rule", "replacement"),
    [(R.GradientDescent(1.0, weight_decay=0.1), False), (R.Momentum(1.0), False),
     (R.GradientDescent(1.0), True)],
)  # fmt: skip
def test_what_moves_other_samples_too_goes_through_numpy(rule, replacement):
    assert not batches.serves(MODEL, rule, MiniBatch(Y, 5, replacement, 0))


def test_one_that_diverges_says_after_which_epoch():
    with pytest.raises(fastnc.Diverged, match=r"not finite after epoch \d+: "):
        fastnc.descend(MODEL, 1e200, 50, batch_size=5)
