"""The public objective: libraries, layouts, overrides, memory, and what it refuses."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastnc

FUNCTIONS = ["loss", "loss_and_grads", "log_loss_and_grads"]


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 6)), rng.standard_normal((30, 6)), rng.integers(0, 4, 30)


def flat(result):
    return [np.asarray(x) for x in (result if isinstance(result, tuple) else (result,))]


def call(name, W, H, y, *more, **options):
    """Any of the five; a step returns its loss and what became of W and H."""
    function = getattr(fastnc, name)
    if name == "hessian_vector_product":
        return flat(function(W, H, y, W, H, *more, **options))
    if name == "gradient_step":
        new_W, new_H = (x.copy() if isinstance(x, np.ndarray) else x.clone() for x in (W, H))
        value = function(new_W, new_H, y, 0.5, *more, **options)
        return flat((value, new_W, new_H))
    return flat(function(W, H, y, *more, **options))


ALL = [*FUNCTIONS, "hessian_vector_product", "gradient_step"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_override_is_the_reference(problem, name, reduction):
    ours = call(name, *problem, reduction)
    for got, want in zip(ours, call(name, *problem, reduction, impl="reference"), strict=True):
        # Sums of 30 terms of size at most 10.
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    for got, want in zip(ours, call(name, *problem, reduction, impl="cpu"), strict=True):
        assert np.array_equal(got, want)


def test_the_mean_is_the_default_and_divides_by_n(problem):
    for name in ("loss", "loss_and_grads"):
        for mean, total in zip(call(name, *problem), call(name, *problem, "sum"), strict=True):
            np.testing.assert_allclose(30 * mean, total, rtol=1e-14)
    (mean, *by_mean), (total, *by_total) = (
        call("log_loss_and_grads", *problem, reduction) for reduction in ("mean", "sum")
    )
    assert mean == pytest.approx(total - np.log(30), rel=1e-14)
    assert all(np.array_equal(a, b) for a, b in zip(by_mean, by_total, strict=True))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_in_tensors_out(problem, name, dtype):
    torch = pytest.importorskip("torch")
    W, H, y = problem
    arrays = W.astype(dtype), H.astype(dtype), y
    tensors = [torch.from_numpy(x) for x in arrays]
    before = [x.clone() for x in tensors]
    for got, want in zip(call(name, *tensors), call(name, *arrays), strict=True):
        assert got.dtype == dtype and np.array_equal(got, np.asarray(want).astype(dtype))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    tensors[0].requires_grad_(True)
    result = fastnc.loss(*tensors)
    assert result.shape == () and result.dtype == tensors[0].dtype


@pytest.mark.parametrize("name", [*FUNCTIONS, "hessian_vector_product"])
def test_any_layout_and_integer(problem, name):
    W, H, y = problem
    want = call(name, W, H, y)
    strided = np.repeat(H, 2, axis=0)[::2]
    frozen = H.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(H), strided, frozen):
        for a, b in zip(call(name, W, other, y), want, strict=True):
            assert np.array_equal(a, b)
    for kind in (np.uint8, np.int32, np.int64, np.uint64):
        assert np.array_equal(call(name, W, H, y.astype(kind))[0], want[0])
    assert np.array_equal(call(name, W, H, y.tolist())[0], want[0])


def test_a_step_is_in_place(problem):
    W, H, y = problem
    value, grad_W, grad_H = fastnc.loss_and_grads(W, H, y)
    new_W, new_H = W.copy(), H.copy()
    assert fastnc.gradient_step(new_W, new_H, y, 0.5) == value
    np.testing.assert_allclose(new_W, W - 0.5 * grad_W, rtol=0, atol=1e-15)
    np.testing.assert_allclose(new_H, H - 0.5 * grad_H, rtol=0, atol=1e-15)


@pytest.mark.parametrize("impl", [None, "reference"])
@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (lambda W, H: H.__setitem__((7, 2), np.nan), ValueError,
         r"`H` must be finite; got nan at index \(7, 2\)"),
        (lambda W, H: W.__setitem__((1, 0), np.inf), ValueError,
         r"`W` must be finite; got inf at index \(1, 0\)"),
        (lambda W, H: (W.__imul__(1e200), H.__imul__(1e200)), OverflowError,
         r"a logit of `W` and `H` is beyond the range of float64.*smaller `lr`"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_a_refused_step_moves_nothing_of_a_small_problem(problem, spoil, error, sentence, impl):
    """30 samples are one chunk; of many, the doc says what may have moved."""
    W, H, y = problem
    spoil(W, H)
    before = W.copy(), H.copy()
    with pytest.raises(error, match=sentence):
        fastnc.gradient_step(W, H, y, 0.5, impl=impl)
    assert np.array_equal(W, before[0]) and np.array_equal(H, before[1], equal_nan=True)
    with pytest.raises(error, match=sentence):
        fastnc.loss_and_grads(W, H, y, impl=impl)
    with pytest.raises(error, match=sentence):
        fastnc.hessian_vector_product(W, H, y, np.ones_like(W), np.ones_like(H), impl=impl)


def test_shapes_and_dtypes_that_do_not_fit(problem):
    W, H, y = problem
    refuse = [
        ((W[:1], H, np.zeros(30, int)), r"`W` must have at least 2 rows, one a class; got shape"),
        ((W, H[:, :5], y), r"`H` must have 6 columns; got shape \(30, 5\)"),
        ((W, H.astype("float32"), y), r"`H` must have the dtype of `W`, float64; got float32\. C"),
        ((W, H, y + 1), r"`y` must lie in 0\.\.3 \(4 classes were given\); got 4 at index"),
        ((W, H, y[:-1]), r"`y` must have one label a sample \(30\); got 29"),
        (
            (H, W, y),
            r"one label a sample \(4\); got 30, as many as `W` has rows\. Swap `W` and `H`\.",
        ),
        ((W, H, y * 1.0), r"`y` must hold integers; got float64"),
        ((W.tolist(), H, y), r"`W` must be a NumPy array or a torch tensor; got list"),
    ]
    for arguments, sentence in refuse:
        for name in FUNCTIONS:
            with pytest.raises((ValueError, TypeError), match=sentence):
                getattr(fastnc, name)(*arguments)
    with pytest.raises(ValueError, match=r"`dW` must have 4 rows; got shape \(3, 6\)"):
        fastnc.hessian_vector_product(W, H, y, W[:3], H)
    with pytest.raises(TypeError, match=r"`dW` must be a NumPy array or a torch tensor; got None"):
        fastnc.hessian_vector_product(W, H, y, None, None)
    with pytest.raises(TypeError, match=r"`dH` must have the dtype of `W`, float64; got float32"):
        fastnc.hessian_vector_product(W, H, y, W, H.astype("float32"))


def test_words_and_devices(problem):
    torch = pytest.importorskip("torch")
    W, H, y = problem
    with pytest.raises(ValueError, match=r"`reduction` must be 'mean' or 'sum'; got 'none'"):
        fastnc.loss(W, H, y, "none")
    with pytest.raises(ValueError, match=r"`impl` must be .*'reference'.*got 'cuda'"):
        fastnc.loss(W, H, y, impl="cuda")
    with pytest.raises(TypeError, match=r"`H` must live where `W` does \(a NumPy array\); got a t"):
        fastnc.loss(W, torch.from_numpy(H), y)
    meta = torch.empty((30, 6), dtype=torch.float64, device="meta")
    with pytest.raises(TypeError, match=r"`H` must be a dense tensor .* of the device 'meta'"):
        fastnc.loss(torch.from_numpy(W), meta, y)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"`impl='gpu'` must find a CUDA device; torch sees"):
            fastnc.loss(W, H, y, impl="gpu")


def test_a_missing_extra_is_named(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"torch is needed .* pip install 'fastnc\[torch\]'"):
        fastnc.loss(*problem, impl="gpu")


def test_what_a_step_cannot_overwrite(problem):
    W, H, y = problem
    with pytest.raises(ValueError, match=r"`lr` must be a positive number; got -1"):
        fastnc.gradient_step(W, H, y, -1)
    with pytest.raises(ValueError, match=r"`H` must be C-contiguous, as it is overwritten; got s"):
        fastnc.gradient_step(W, np.asfortranarray(H), y, 0.1)
    frozen = W.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"`W` must be writable, as it is overwritten; copy it"):
        fastnc.gradient_step(frozen, H, y, 0.1)
    with pytest.raises(ValueError, match=r"`W` and `H` must not share memory, as both are overw"):
        fastnc.gradient_step(H[:4], H, y, 0.1)
    torch = pytest.importorskip("torch")
    both = torch.from_numpy(H)
    with pytest.raises(ValueError, match=r"`W` and `H` must not share memory"):
        fastnc.gradient_step(both[:4], both, y, 0.1)
    with pytest.raises(ValueError, match=r"`W` must be C-contiguous, as it is overwritten"):
        fastnc.gradient_step(torch.from_numpy(W.copy(order="F")), both, y, 0.1)


def test_memory_beside_the_arguments_does_not_grow_with_n():
    """In a process of its own, whose peak is this call's; 256 MB of H at N = 1e6.

    The limit is 64 MB; threads' stacks and pages of the allocator are a few MB of what is seen.
    """
    code = """
import resource, numpy as np, fastnc
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
W = np.linspace(-0.1, 0.1, 640, dtype=np.float32).reshape(10, 64)
fastnc.gradient_step(W, np.ones((20_000, 64), np.float32), np.zeros(20_000, np.int64), 0.1)
for n in (500_000, 1_000_000):
    H, y = np.ones((n, 64), np.float32), np.arange(n) % 10
    before = peak()
    fastnc.gradient_step(W, H, y, 0.1)
    print(peak() - before)
    del H, y
"""
    if sys.platform != "linux":
        pytest.skip("the peak is counted in other units elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    half, full = map(float, done.stdout.split())
    assert half < 64 and full < 64


def test_the_log_form_goes_on_to_the_end_of_floats():
    """log L = -gap, and the gradients over the loss are those of the gap."""
    for size in (1e100, 1e150, 6e153):
        W, H = np.array([[size], [-size]]), np.array([[size]])
        log_loss, grad_W, grad_H = fastnc.log_loss_and_grads(W, H, np.array([0]))
        # Two roundings of the product.
        assert log_loss == pytest.approx(-2.0 * size * size, rel=4.5e-16)
        np.testing.assert_allclose(grad_W, [[-size], [size]], rtol=4.5e-16)
        np.testing.assert_allclose(grad_H, [[-2.0 * size]], rtol=4.5e-16)


def test_autograd_learns_of_a_step_in_place():
    """What it had saved changed, and its gradients were of another point without a word."""
    torch = pytest.importorskip("torch")
    model = fastnc.ULPM(3, 4, 5)
    W, H = (torch.from_numpy(x).requires_grad_() for x in model.init(0))
    of_both = (W * W).sum() + (H * H).sum()
    fastnc.gradient_step(W, H, torch.from_numpy(model.y.copy()), 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        of_both.backward()
    with torch.inference_mode():
        fastnc.gradient_step(W.clone(), H.clone(), torch.from_numpy(model.y.copy()), 0.5)
