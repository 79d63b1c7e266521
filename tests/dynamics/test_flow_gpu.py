"""Gradient flow on a device beside the same flow on the CPU, and its parts beside NumPy's."""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, count_fetches, play_a_gpu

import fastnc
from fastnc._core import arrays, kernel_call
from fastnc.collapse import batch
from fastnc.dynamics import rank_snapshot
from fastnc.dynamics.flow import prepare_flow
from fastnc.dynamics.integrator import device_flow
from fastnc.dynamics.integrator.equation import Decays, FlowEquation
from fastnc.dynamics.integrator.newton import ERROR, MOST_PRODUCTS
from fastnc.dynamics.integrator.on_device import DeviceEquation, Residuals, minimal_residual
from fastnc.dynamics.steppers import cuda, epochs
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


@pytest.mark.parametrize("gap", [1.0, 16.5, 37.25, 300.0])
@pytest.mark.parametrize("label", [0, 1])
def test_hessian_products_where_any_class_is_almost_certain(label, gap):
    """Rates of the logits near 500, which their mean must not cancel."""
    H, y = np.array([[gap + 0.5, 0.5, 0.25, 0.0]]), np.array([label])
    x = np.concatenate([np.zeros(16), [500.0, 503.0, 498.0, 507.0]])
    wanted = residuals.Residuals(np.eye(4), H, y).hessian_product(x)
    found = Residuals(*there(np.eye(4), H, y)).hessian_product(*there(x)).cpu().numpy()
    # An entry is a product of some numbers, each of a few roundings; a gap of 300 has one of 6e-14.
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=0.0)


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


# Unequal classes; equal ones; one that is absent; more features than rows; weight decay.
FLOWS = {
    "unequal": MODEL,
    "equal": fastnc.ULPM(3, 4, 5),
    "absent": fastnc.ULPM(4, dim=4, labels=[0, 0, 2, 2, 2, 3, 0, 3]),
    "many features": fastnc.ULPM(2, 2, 9),
    "decay": fastnc.models.weight_decay(3, 4, 4, 1e-1, 2e-1),
}


def moved(model, device):
    """A flow at its first snapshot after the start."""
    run = prepare_flow(model, 1.0, 0, None, None, 1, 1e-6, "krylov", device)
    assert not run.arrive()
    run.move(100)
    assert run.is_due
    return run.stepper


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", FLOWS)
def test_a_snapshot_on_the_device_is_that_of_the_host(name, monkeypatch):
    flow = moved(FLOWS[name], "cuda")
    monkeypatch.setattr(cuda, "ON_THE_HOST", 10**9)
    here = flow.measure()
    monkeypatch.setattr(cuda, "ON_THE_HOST", 0)
    # Chunks of a few rows.
    monkeypatch.setattr(device_flow, "_CHUNK_BYTES", 8 * 3 * 3)
    monkeypatch.setattr(rank_snapshot, "_CHUNK_BYTES", 8 * 5 * 3)
    there = flow.measure()
    assert list(here) == list(there) and here["log_loss"] < moved_from(FLOWS[name])
    size = here["norm_W"] ** 2 + here["norm_H"] ** 2
    for column, value in here.items():
        # Sums in another order; terms are differences of numbers of the size of the squares, and
        # the drift is nothing but rounding.
        wanted = pytest.approx(value, rel=1e-9, abs=1e-13 * max(1.0, size), nan_ok=True)
        assert there[column] == wanted, column


def moved_from(model):
    """log of the mean loss at the start."""
    return float(Residuals(*there(*model.init(0), model.y)).log_loss) - np.log(len(model.y))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", FLOWS)
def test_a_snapshot_brings_no_features_to_the_host(name, monkeypatch):
    model = FLOWS[name]
    flow = moved(model, "cuda")
    K, d = flow.equation.shape
    rows = len(model.y) * d
    monkeypatch.setattr(cuda, "ON_THE_HOST", 0)
    # The kernels of a GPU, interpreted: those of the CPU read its tensors as arrays.
    for module in (arrays, batch, kernel_call):
        monkeypatch.setattr(module, "home", lambda x: "gpu" if arrays.is_torch(x) else "cpu")
    fetched = count_fetches(monkeypatch.setattr, "cpu", "tolist", "item", "__float__")
    found = flow.measure()
    assert fetched and max(numbers for _, numbers in fetched) <= K * d < rows
    fetched.clear()
    flow.state()
    assert max(numbers for _, numbers in fetched) >= rows
    monkeypatch.undo()
    assert found["margin"] == pytest.approx(fastnc.neural_collapse_margin(flow.W, flow.H, model.y))


@pytest.mark.usefixtures("quick")
def test_the_largest_entry_is_that_of_the_coordinates_of_the_start():
    model = FLOWS["many features"]
    for device in ("cpu", "cuda"):
        flow = moved(model, device)
        ratio = fastnc.theory.margin_ratio_max(flow.W, flow.H, model.y)
        assert flow.measure()["margin_ratio_max"] == pytest.approx(ratio, rel=1e-12)


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_is_written_meanwhile(tmp_path, monkeypatch):
    options = {"snapshots": 2, "device": "cuda", "rtol": 1e-6}
    straight = fastnc.flow(MODEL, 0.5, **options)
    monkeypatch.setattr(epochs, "CHEAP_TO_COPY", 0)
    path = tmp_path / "flow.npz"
    for horizon in (0.1, 0.5):
        run = fastnc.flow(
            MODEL, horizon, checkpoint=path, checkpoint_every=0, resume=True, **options
        )
    np.testing.assert_allclose(run.H, straight.H, rtol=1e-5)
    # What is handed over does not change while later steps are made.
    flow = moved(MODEL, "cuda")
    before = flow.state()
    later = flow.state_later()
    flow.advance(1.0, 2)
    written = later()
    assert written.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(written[name], value)
    assert flow.state()["x"] > before["x"]
