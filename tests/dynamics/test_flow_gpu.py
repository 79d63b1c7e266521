"""Gradient flow on a device beside the same flow on the CPU, and its parts beside NumPy's."""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, play_a_gpu

import fastnc
from fastnc.dynamics.integrator.equation import Decays, FlowEquation
from fastnc.dynamics.integrator.newton import ERROR, MOST_PRODUCTS
from fastnc.dynamics.integrator.on_device import DeviceEquation, Residuals, minimal_residual
from fastnc.kernels.gpu import cross_entropy
from fastnc.theory import residuals

MODEL = fastnc.ULPM(3, dim=4, labels=[0, 0, 0, 1, 1, 2, 2])


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Without a GPU the CPU passes for one: the kernels are interpreted."""
    if DEVICE != "cuda":
        play_a_gpu(monkeypatch.setattr)


def there(*arrays):
    return [torch.from_numpy(np.array(x)).to(DEVICE) for x in arrays]


# The start; separated, so that the loss is e^-900, which is no number; wrong by some hundreds.
POINTS = {"start": 1.0, "far": 30.0, "wrong": -20.0}


def point(name):
    W, H = MODEL.init(0)
    if name == "start":
        return W, H
    M = fastnc.reference.simplex_etf(3)
    size = POINTS[name]
    W = abs(size) * np.concatenate([M, np.zeros((3, 1))], axis=1) + W
    return W, size * np.concatenate([M, np.zeros((3, 1))], axis=1)[MODEL.y] + H


@pytest.mark.parametrize("name", POINTS)
def test_residuals_and_hessian_products(name):
    W, H = point(name)
    here, found = residuals.Residuals(W, H, MODEL.y), Residuals(*there(W, H, MODEL.y))
    # Gaps of up to a thousand are off by an ulp of 1e-13, and e to their power by as much.
    close = {"rtol": 1e-12, "atol": 1e-300}
    assert float(found.log_loss) == pytest.approx(here.log_loss, rel=1e-14, abs=1e-14)
    for part in ("scaled", "residuals", "weights"):
        np.testing.assert_allclose(getattr(found, part).cpu(), getattr(here, part), **close)
    x = np.random.default_rng(1).standard_normal(W.size + H.size)
    wanted = here.hessian_product(x)
    got = found.hessian_product(*there(x)).cpu().numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("decays", [Decays(), Decays(1e-2, 2e-2)], ids=["none", "decays"])
@pytest.mark.parametrize("name", ["start", "far"])
def test_the_right_hand_side_and_the_solves(name, decays):
    W, H = point(name)
    theta = np.concatenate([W.ravel(), H.ravel()])
    here = FlowEquation(W.shape, MODEL.y, "krylov", decays)
    gpu = DeviceEquation(W.shape, MODEL.y, torch.device(DEVICE), decays)
    x = float(np.arcsinh(5.0))
    (place,) = there(theta)
    slope = here.derivative(x, theta)
    close = {"rtol": 0, "atol": 1e-12 * np.abs(slope).max()}
    np.testing.assert_allclose(gpu.derivative(x, place).cpu(), slope, **close)
    assert gpu.mean_log_loss(place) == pytest.approx(here.mean_log_loss(theta), rel=1e-13)
    J, device_J = here.jacobian(x, theta), gpu.jacobian(x, place)
    rng = np.random.default_rng(2)
    right = rng.standard_normal((2, len(theta)))
    for sigma, b in ((30.0, right[:1]), (20.0 + 15.0j, right)):
        wanted = here.factorise(J, sigma).solve(b)
        (on_gpu,) = there(b)
        found = gpu.factorise(device_J, sigma).solve(on_gpu).cpu().numpy()
        # The same iteration, ended by the same test.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def test_a_solve_that_does_not_end_is_told():
    matrix = torch.diag(torch.tensor([1.0, 9.0, 3.0], dtype=torch.float64))
    right = torch.ones(3, dtype=torch.float64)
    assert minimal_residual(lambda v: matrix @ v, 1.0, right, 1e-8, 1) is None
    found = minimal_residual(lambda v: matrix @ v, 1.0, right, 1e-8, 10)
    # The error is at most the tolerance times the answer's length.
    np.testing.assert_allclose(found, [0.5, 0.1, 0.25], rtol=0, atol=1e-8)
    assert not minimal_residual(lambda v: matrix @ v, 1.0, 0.0 * right, ERROR, MOST_PRODUCTS).any()


@pytest.fixture
def quick(monkeypatch):
    """Thousands of evaluations are too many for the interpreter: torch in the kernels' place."""

    def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out, tier):
        at = Residuals(W, H, y)
        log_loss_out.copy_(at.log_loss)
        grad_W_out.copy_(at.residuals.T @ H)
        grad_H_out.copy_(at.residuals @ W)

    if DEVICE != "cuda":
        monkeypatch.setattr(cross_entropy, "log_loss_and_grads", log_loss_and_grads)


@pytest.mark.usefixtures("quick")
def test_the_flow_goes_where_that_on_the_cpu_goes():
    options = {"log10_time": 3.0, "snapshots": 3}
    cpu = fastnc.flow(MODEL, solver="krylov", **options)
    gpu = fastnc.flow(MODEL, device="cuda", **options)
    assert gpu.about["device"] == "cuda" and gpu.about["solver"] == "krylov"
    assert list(cpu.columns) == list(gpu.columns)
    for name in ("log_loss", "margin", "within_class", "norm_W"):
        # Either is right to a relative 1e-8, which is what was asked for.
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("quick")
def test_it_resumes_bit_for_bit_and_takes_decays(tmp_path):
    model = fastnc.models.weight_decay(2, 2, 3, 1e-1, 1e-1)
    path, options = tmp_path / "flow.npz", {"snapshots": 2, "device": "cuda"}
    straight = fastnc.flow(model, 1.0, **options)
    for horizon in (0.5, 1.0):
        resumed = fastnc.flow(model, horizon, checkpoint=path, resume=True, **options)
    np.testing.assert_array_equal(resumed.W, straight.W)
    assert straight["objective"][-1] < straight["objective"][0]


def test_a_factorisation_is_not_for_a_device():
    with pytest.raises(ValueError, match=r"`solver` must be 'krylov' with device='cuda'; got"):
        fastnc.flow(MODEL, solver="direct", device="cuda")
