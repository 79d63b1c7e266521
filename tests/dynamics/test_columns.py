"""Further columns: the sharpness beside a dense Hessian, curvature, functions, their bits."""

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.columns import sharpness

MODEL = fastnc.ULPM(n_classes=4, n_per_class=3, dim=6)


def dense_hessian(W, H, y):
    """The Hessian of the mean loss by central differences of its gradient, written here."""
    K, d = W.shape

    def gradient(theta):
        V, G = theta[: K * d].reshape(K, d), theta[K * d :].reshape(-1, d)
        p = np.exp(G @ V.T)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1.0
        return np.concatenate([(p.T @ G).ravel(), (p @ V).ravel()]) / len(y)

    theta, h = np.concatenate([W.ravel(), H.ravel()]), 1e-5
    return np.array(
        [(gradient(theta + h * e) - gradient(theta - h * e)) / (2 * h) for e in np.eye(theta.size)]
    )


@pytest.mark.parametrize("model", [MODEL, fastnc.ULPM(2, 2, 3)])
def test_sharpness_is_the_largest_eigenvalue(model):
    W, H = model.init(0)
    value, vector = sharpness(W, H, model.y)
    matrix = dense_hessian(W, H, model.y)
    # Differences of steps of 1e-5: 1e-10, and rounding over the step.
    assert value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-7)
    # From its own vector on Lanczos has little to do, and finds the same.
    assert sharpness(W, H, model.y, vector)[0] == pytest.approx(value, rel=1e-8)


def test_columns_of_a_run_and_their_bits_after_a_stop(tmp_path):
    asked = ("sharpness", "tangent_curvature", {"trace": lambda W, H, y: float((W * W).sum())})
    options = {"lr": 2.0, "snapshots": 4, "measure": asked}
    run = fastnc.descend(MODEL, epochs=200, **options)
    assert run.columns[-3:] == ("sharpness", "tangent_curvature", "trace")
    np.testing.assert_allclose(run["trace"], run["norm_W"] ** 2, rtol=1e-14)
    plain = fastnc.descend(MODEL, epochs=200, lr=2.0, snapshots=4)
    assert plain.W.tobytes() == run.W.tobytes()
    assert run["sharpness"][-1] == pytest.approx(sharpness(run.W, run.H, run.y)[0], rel=1e-7)
    curvature, _ = fastnc.tangent_curvature(run.W, run.H, run.y)
    assert run["tangent_curvature"][-1] == pytest.approx(curvature, rel=1e-9)
    path = tmp_path / "checkpoint.npz"
    for epochs in (10, 77, 200):
        again = fastnc.descend(MODEL, epochs=epochs, **options, checkpoint=path, resume=True)
    for name in run.columns:
        assert again[name].tobytes() == run[name].tobytes(), name


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("sharpnes", "`measure` must hold 'sharpness' or 'tangent_curvature', or a dict of func"),
        (3, "`measure` must hold 'sharpness' or 'tangent_curvature', or a dict .*; got 3"),
        ({"trace": 3}, "`measure` must name functions of W, H and y; got 'trace': int"),
        ({"W": lambda W, H, y: W}, r"`measure\['W'\]` must return one number; got shape"),
        ({"none": lambda W, H, y: None}, r"`measure\['none'\]` must return one number; got None"),
    ],
)
def test_refusals(asked, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        fastnc.descend(MODEL, epochs=5, measure=asked)


def test_a_generator_is_measured_as_a_list_is():
    """It was read for the names, and empty when the columns were made."""
    asked = ["sharpness", {"trace": lambda W, H, y: float(np.sum(W * W))}]
    run = fastnc.descend(MODEL, epochs=5, measure=iter(asked))
    assert run.about["measure"] == ["sharpness", "trace"] and "measured by" in run.about
    assert run["trace"][-1] == np.sum(run.W * run.W)
    (swept,) = fastnc.sweep(MODEL, epochs=5, seeds=[0], measure=(one for one in asked))
    for name in ("sharpness", "trace"):
        assert np.array_equal(swept[name], run[name])
