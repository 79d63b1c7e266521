"""Gradient descent against a NumPy loop, in both dtypes, and its refusals."""

import numpy as np
import pytest

import fastnc
from fastnc import reference
from fastnc.dynamics.snapshot import COLUMNS

MODEL = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)


def numpy_descent(W, H, y, lr, epochs):
    """The obvious loop, in float64 and without any kernel."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    onehot = np.eye(len(W))[y]
    for _ in range(epochs):
        Z = H @ W.T
        p = np.exp(Z - Z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        r = lr / len(y) * (p - onehot)
        W, H = W - r.T @ H, H - r @ W
    return W, H


def test_two_thousand_epochs_agree_with_the_numpy_loop():
    run = fastnc.descend(MODEL, lr=5.0, epochs=2000, seed=0)
    W, H = numpy_descent(*MODEL.init(0), MODEL.y, 5.0, 2000)
    # Rounding differs by a few ulp an epoch, and the descent, which converges, does not amplify.
    np.testing.assert_allclose(run.W, W, atol=1e-9)
    np.testing.assert_allclose(run.H, H, atol=1e-9)


def test_snapshots_say_what_the_reference_says():
    run = fastnc.descend(MODEL, epochs=300, seed=1)
    assert run.columns == ("epoch", *COLUMNS)
    W, H, y = run.W, run.H, run.y
    loss, grad_W, grad_H = reference.loss_and_grads(W, H, y)
    grad = np.hypot(np.linalg.norm(grad_W), np.linalg.norm(grad_H)) / len(y)
    theta = np.hypot(np.linalg.norm(W), np.linalg.norm(H))
    inner = ((W * grad_W).sum() + (H * grad_H).sum()) / len(y)
    means = reference.class_means(H, y)
    expected = {
        "log_loss": np.log(loss / len(y)),
        "log_grad_norm": np.log(grad),
        "grad_norm": grad,
        "norm_W": np.linalg.norm(W),
        "norm_H": np.linalg.norm(H),
        "beta": -inner / (theta * grad),
        "margin": reference.neural_collapse_margin(W, H, y),
        "margin_ratio": reference.margin_ratio(W, H, y),
        "equinorm_features": reference.equinorm(means),
        "equinorm_classifier": reference.equinorm(W),
        "within_class": reference.within_class(H, y),
        "equiangular_features": reference.equiangular(means),
        "equiangular_classifier": reference.equiangular(W),
        "self_duality": reference.self_duality(W, means),
        "nc1": reference.nc1(H, y),
    }
    for name, value in expected.items():
        # Sums of a few hundred float64 terms of both signs.
        assert run[name][-1] == pytest.approx(value, rel=1e-10), name
    epsilon = theta * np.sqrt(2 * (1 - expected["beta"]) / expected["margin"])
    # 1 - beta of the reference has lost two digits here.
    assert run["epsilon"][-1] == pytest.approx(epsilon, rel=1e-8)


def test_float32_stays_beside_float64_through_compensation():
    single = fastnc.descend(MODEL, epochs=20_000, seed=2, dtype="float32")
    double = fastnc.descend(MODEL, epochs=20_000, seed=2)
    assert single.W.dtype == np.float32 and single.H.dtype == np.float32
    # One rounded gradient an epoch leaves 1e-6 of the margin; without the compensation this
    # run is off by more than the tolerance from about 1e4 epochs on.
    assert single["margin"][-1] == pytest.approx(double["margin"][-1], abs=1e-3)
    assert single["within_class"][-1] == pytest.approx(double["within_class"][-1], rel=1e-3)


def test_same_seed_same_bits_and_a_given_start():
    first, again = (fastnc.descend(MODEL, epochs=500, seed=5) for _ in range(2))
    assert first.H.tobytes() == again.H.tobytes()
    W, H = MODEL.init(seed=5)
    kept = H.copy()
    given = fastnc.descend(MODEL, epochs=500, W=W, H=H)
    assert given.H.tobytes() == first.H.tobytes() and np.array_equal(H, kept)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resumed_run_has_the_same_bits(tmp_path, dtype):
    path = tmp_path / "checkpoint.npz"
    whole = fastnc.descend(MODEL, epochs=700, seed=1, dtype=dtype)
    for epochs in (1, 2, 123, 700):
        run = fastnc.descend(
            MODEL, epochs=epochs, seed=1, dtype=dtype, checkpoint=path, resume=True
        )
    assert run.W.tobytes() == whole.W.tobytes() and run.H.tobytes() == whole.H.tobytes()
    for name in whole.columns:
        assert run[name].tobytes() == whole[name].tobytes(), name


def test_unsorted_unbalanced_labels_with_an_absent_class():
    y = np.array([3, 0, 3, 3, 1, 0, 4])
    model = fastnc.ULPM(n_classes=5, dim=3, labels=y)
    run = fastnc.descend(model, lr=1.0, epochs=200, seed=0)
    W, H = numpy_descent(*model.init(0), y, 1.0, 200)
    np.testing.assert_allclose(run.W, W, atol=1e-10)
    np.testing.assert_allclose(run.H, H, atol=1e-10)


def test_a_step_that_is_too_large_is_told():
    with pytest.raises(fastnc.Diverged, match=r"after epoch \d+: the step `lr`=1e\+06") as caught:
        fastnc.descend(MODEL, lr=1e6, epochs=5000)
    assert len(caught.value.run) >= 1 and np.isfinite(caught.value.run["log_loss"]).all()


def test_a_start_that_overflows_is_not_blamed_on_the_step():
    W, H = (1e300 * x for x in MODEL.init(0))
    with pytest.raises(fastnc.Diverged, match=r"the loss of the start is not finite: a logit over"):
        fastnc.descend(MODEL, W=W, H=H, epochs=10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"lr": -1.0}, "`lr` must be a positive number; got -1.0"),
        ({"lr": float("nan")}, "`lr` must be a positive number; got nan"),
        ({"epochs": 0}, "`epochs` must be an integer of at least 1; got 0"),
        ({"epochs": 10.5}, "`epochs` must be an integer of at least 1; got 10.5"),
        ({"snapshots": 0}, "`snapshots` must be an integer of at least 1"),
        ({"seed": -3}, "`seed` must be an integer of at least 0; got -3"),
        ({"noise": -1}, "`noise` must be a number of at least 0"),
        ({"checkpoint_every": -1}, "`checkpoint_every` must be a number of at least 0"),
        ({"dtype": "float16"}, "`dtype` must be 'float32' or 'float64'; got 'float16'"),
        ({"device": "tpu"}, "`device` must be 'cpu' or 'cuda'"),
        ({"schedule": "cosine"}, "`schedule` must be 'constant' or 'loss-scaled'; got 'cosine'"),
        ({"W": np.ones((4, 20))}, r"`W` must have 5 rows; got shape \(4, 20\)"),
        ({"H": np.ones((50, 2))}, r"`H` must have 20 columns; got shape \(50, 2\)"),
        ({"W": [[1.0]]}, "`W` must be a NumPy array or a torch tensor; got list"),
        ({"W": np.full((5, 20), np.nan)}, r"`W` must be finite; got nan at index \(0, 0\)"),
        (
            {"W": np.full((5, 20), 1e300), "dtype": "float32"},
            r"`W` must be finite; got inf at index \(0, 0\)",
        ),
        ({"checkpoint": 3}, "`checkpoint` must be a path; got int"),
        ({"checkpoint": "."}, r"`checkpoint` must be a file in a folder that exists; got '\.'"),
        ({"resume": True}, "`resume` must have a file to go on from; give `checkpoint`"),
        ({"checkpoint": "absent/run.npz"}, "folder that exists; got 'absent/run.npz'. Make the f"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        fastnc.descend(MODEL, **{"epochs": 10, **arguments})


def test_what_one_feature_cannot_separate_is_not_blamed_on_the_step():
    with pytest.raises(fastnc.Diverged, match="one feature separates at most two classes, of 3 he"):
        fastnc.descend(fastnc.ULPM(3, 2, 1), epochs=100_000, snapshots=5)
    assert fastnc.descend(fastnc.ULPM(2, 2, 1), epochs=1000)["margin"][-1] > 1


def test_a_start_at_zero_is_refused_where_nothing_would_move_it():
    W, H = np.zeros((5, 20)), np.zeros((50, 20))
    with pytest.raises(ValueError, match="`W` and `H` must not both be 0: the gradient is 0 there"):
        fastnc.descend(MODEL, W=W, H=H, epochs=10)
    noisy = fastnc.descend(MODEL, W=W, H=H, epochs=10, noise=0.1)
    assert np.abs(noisy.W).max() > 0


def test_switches_are_true_or_false():
    """Any text was taken as yes, "no" too."""
    model = fastnc.ULPM(2, 2, 2)
    for name in ("resume", "replacement", "sharded"):
        with pytest.raises(TypeError, match=f"`{name}` must be True or False; got 'no'"):
            fastnc.descend(model, epochs=2, batch_size=2, **{name: "no"})
    with pytest.raises(TypeError, match="`nesterov` must be True or False; got 'no'"):
        fastnc.rules.Momentum(1.0, nesterov="no")
    with pytest.raises(TypeError, match="`per_factor` must be True or False; got 'W'"):
        fastnc.rules.NormalizedDescent(1.0, per_factor="W")
