"""Gradient flow of objectives without a structure of their own: ends, an integrator, bits."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fastnc
from fastnc import models as M

BIASED = M.weight_decay(2, 2, 2, 2e-2, 1e-2, bias=True, label_smoothing=0.1)


@pytest.mark.parametrize(
    "model",
    [
        BIASED,
        M.squared_error(2, 2, 2, 1e-2, 2e-2, bias=True),
        M.imbalanced_squared_error((3, 1), 2, 1e-2, 2e-2),
        fastnc.ULPM(2, 2, 2, loss="squared"),
        fastnc.ULPM(2, 2, 2, loss="smoothed"),
    ],
    ids=lambda model: type(model).__name__ + getattr(model, "loss", ""),
)
def test_it_comes_to_rest_at_the_optimum(model):
    run = fastnc.flow(model, snapshots=3)
    least = model.optimum().value
    assert run["objective"][-1] == pytest.approx(least, rel=1e-11, abs=1e-14)
    # It never rises, but for rounding.
    assert (np.diff(run["objective"]) < 1e-12).all() and run.about["solver"] == "dense"
    assert (run.bias is None) == (not getattr(model, "has_bias", False))


@pytest.mark.parametrize("name", ["squared", "focal", "smoothed"])
def test_an_explicit_integrator_goes_the_same_way(name):
    model = fastnc.ULPM(2, 2, 3, loss=name)
    run = fastnc.flow(model, 1.5, snapshots=2)
    W, H = model.init(0)

    def slope(t, theta):
        g = model.value_and_grads(
            theta[: W.size].reshape(W.shape), theta[W.size :].reshape(H.shape)
        )
        return -np.concatenate([g.W.ravel(), g.H.ravel()])

    theta = np.concatenate([W.ravel(), H.ravel()])
    found = solve_ivp(slope, (0, 10**1.5), theta, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    # Ten times the tolerance of 1e-8, and entries of the size of 1.
    np.testing.assert_allclose(np.concatenate([run.W.ravel(), run.H.ravel()]), found, atol=1e-7)
    # What every flow of W H^T conserves.
    np.testing.assert_allclose(run.W.T @ run.W - run.H.T @ run.H, W.T @ W - H.T @ H, atol=1e-7)


def test_stopped_and_resumed_runs_have_the_same_bits(tmp_path):
    path = tmp_path / "checkpoint.npz"
    whole = fastnc.flow(BIASED, 1, snapshots=2, checkpoint=path)
    later = fastnc.flow(BIASED, 3, snapshots=2, checkpoint=path, resume=True)
    again = fastnc.flow(BIASED, 3, snapshots=2)
    assert later.W.tobytes() == again.W.tobytes() and later.bias.tobytes() == again.bias.tobytes()
    assert np.array_equal(again["margin"][: len(whole)], whole["margin"])
    runs = fastnc.sweep(BIASED, method="flow", log10_time=1, seeds=[0, 3], snapshots=2)
    assert runs[0].W.tobytes() == whole.W.tobytes()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: fastnc.flow(fastnc.ULPM(4, 5, 90, loss="focal")),
            "`model` must have at most 2000 numbers to move, .*; got 2160. Use `descend`",
        ),
        (lambda: fastnc.flow(BIASED, solver="krylov"), "`solver` must be 'auto' for weight_decay"),
        (
            lambda: fastnc.flow(fastnc.ULPM(2, 2, 2, loss="focal"), 9),
            "`log10_time` must be at most 8 of ULPM.*; got 9. The flow comes to rest long before",
        ),
        (lambda: fastnc.flow(M.normalized(3, 2, 2, 1.0)), "`model` must be a ULPM, `models.deep_"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()
