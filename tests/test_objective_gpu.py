"""The public functions on a device, end to end: what is checked, placed, computed and handed back.

Under the interpreter the tensors stay on the CPU, and only the questions that nothing but a GPU
answers are answered for it.
"""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, INTERPRETED

import fastnc
from fastnc._core import arrays, kernel_call
from fastnc.collapse.cuda_moments import CudaMoments
from fastnc.theory import margin

K, N, D = 4, 11, 5
# Sums of a few dozen terms, each a few roundings.
TOLERANCE = {"rtol": 1e-13, "atol": 1e-15}


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The tensors of these tests count as a GPU's."""
    if not INTERPRETED:
        return

    def home(x):
        return "gpu" if arrays.is_torch(x) else "cpu"

    monkeypatch.setattr(kernel_call, "home", home)
    monkeypatch.setattr(arrays, "home", home)
    monkeypatch.setattr(kernel_call, "_on_gpu", lambda x: torch.as_tensor(x).detach().contiguous())
    for question in ("check_gpu", "check_memory"):
        monkeypatch.setattr(kernel_call, question, lambda *what: None)


def problem():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(N) % K)
    return rng.standard_normal((K, D)), rng.standard_normal((N, D)), y


def on_device(*arrays):
    return tuple(torch.from_numpy(x.copy()).to(DEVICE) for x in arrays)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["loss", "loss_and_grads", "log_loss_and_grads"])
def test_the_objective_is_the_references(name, reduction):
    arrays = problem()
    found = getattr(fastnc, name)(*on_device(*arrays), reduction=reduction)
    wanted = getattr(fastnc, name)(*arrays, reduction=reduction, impl="reference")
    if name == "loss":
        found, wanted = (found,), (wanted,)
    for got, want in zip(found, wanted, strict=True):
        assert got.device.type == DEVICE and got.dtype == torch.float64
        np.testing.assert_allclose(got.cpu().numpy(), want, **TOLERANCE)


def test_hessian_products_are_the_references():
    W, H, y = problem()
    rng = np.random.default_rng(1)
    dW, dH = rng.standard_normal((K, D)), rng.standard_normal((N, D))
    places = on_device(W, H, y, dW, dH)
    found = fastnc.hessian_vector_product(*places)
    wanted = fastnc.hessian_vector_product(W, H, y, dW, dH, impl="reference")
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got.cpu().numpy(), want, **TOLERANCE)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_step_comes_back_into_the_arguments(library):
    W, H, y = problem()
    wanted_loss, grad_W, grad_H = fastnc.loss_and_grads(W, H, y, impl="reference")
    V, G, labels = on_device(W, H, y) if library == "torch" else (W.copy(), H.copy(), y)
    loss = fastnc.gradient_step(V, G, labels, 0.5, impl="gpu")
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-13)
    for stepped, want in ((V, W - 0.5 * grad_W), (G, H - 0.5 * grad_H)):
        stepped = stepped.cpu().numpy() if library == "torch" else stepped
        np.testing.assert_allclose(stepped, want, **TOLERANCE)


def test_labels_are_checked_where_they_are():
    W, H, y = on_device(*problem())
    for bad, sentence in (
        (torch.where(y == 2, K, y), r"`y` must lie in 0\.\.3"),
        (y[:-1], r"`y` must"),
        (y.double(), r"`y` must"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            fastnc.loss(W, H, bad)


def test_margins_are_those_of_the_cpu(monkeypatch):
    # Blocks of three rows, the last one shorter.
    monkeypatch.setattr(margin, "_BLOCK", 3 * K)
    W, H, y = problem()
    wanted, ratio = fastnc.margins(W, H, y), fastnc.margin_ratio(W, H, y)
    places = on_device(W, H, y)
    np.testing.assert_allclose(fastnc.margins(*places).cpu().numpy(), wanted, **TOLERANCE)
    assert float(fastnc.margin_ratio(*places)) == pytest.approx(ratio, rel=1e-13)


@pytest.mark.parametrize("scatter", ["full", "trace"])
def test_running_moments_are_those_of_the_cpu(scatter):
    rng = np.random.default_rng(2)
    y = rng.integers(0, K, 60)
    H = 3.0 + rng.standard_normal((60, D))
    cpu = fastnc.ClassStatistics(K, D, scatter=scatter)
    cpu.update(H, y)
    moments = CudaMoments(K, D, scatter, torch.device(DEVICE))
    for lo, hi in ((0, 1), (1, 40), (40, 60)):
        moments.update(*on_device(H[lo:hi]), y[lo:hi])
    present, counts, means, squares, within = moments.moments()
    wanted = cpu.state_dict()
    assert present.tolist() == list(range(K)) and counts.tolist() == np.bincount(y).tolist()
    np.testing.assert_allclose(means, wanted["means"], **TOLERANCE)
    np.testing.assert_allclose(squares, wanted["squares"], rtol=1e-12)
    if scatter == "full":
        # Only the lower triangle is kept on the CPU.
        lower = np.tril_indices(D)
        np.testing.assert_allclose(within[lower], np.asarray(wanted["within"])[lower], rtol=1e-12)
    with pytest.raises(ValueError, match=r"`H` must be finite; got nan in sample 7, feature 2"):
        bad = np.where(np.arange(D) == 2, np.nan, H[:1])
        moments.update(*on_device(bad), y[:1], first=7)
