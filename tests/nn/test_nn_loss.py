"""`fastnc.nn.linear_cross_entropy` and its module beside torch's own: values, options, refusals."""

import inspect
import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_problem import REDUCTIONS, agree, expected, problem

from fastnc.nn import LinearCrossEntropyLoss, linear_cross_entropy

ROOT = Path(__file__).parent.parent.parent


def test_the_signature_is_torchs():
    ours = inspect.signature(linear_cross_entropy).parameters
    assert [(p.name, p.kind.name, p.default) for p in ours.values()] == [
        ("input", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("linear_weight", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("target", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("linear_bias", "KEYWORD_ONLY", None),
        ("weight", "KEYWORD_ONLY", None),
        ("reduction", "KEYWORD_ONLY", "mean"),
        ("ignore_index", "KEYWORD_ONLY", -100),
        ("label_smoothing", "KEYWORD_ONLY", 0.0),
        ("options", "KEYWORD_ONLY", None),
        ("return_lse", "KEYWORD_ONLY", False),
        ("return_predictions", "KEYWORD_ONLY", False),
        ("return_entropies", "KEYWORD_ONLY", False),
        ("z_loss_weight", "KEYWORD_ONLY", 0.0),
        ("logit_scale", "KEYWORD_ONLY", None),
        ("softcap", "KEYWORD_ONLY", None),
    ]
    if hasattr(F, "linear_cross_entropy"):
        theirs = inspect.signature(F.linear_cross_entropy).parameters
        assert not set(theirs) - set(ours)


@settings(max_examples=80, deadline=None)
@given(
    N=st.integers(1, 90),
    K=st.integers(1, 12),
    d=st.integers(1, 20),
    bias=st.booleans(),
    weighted=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    ignore_index=st.sampled_from([-100, -1, 0, 2]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    probabilities=st.booleans(),
    seed=st.integers(0, 5),
)
def test_equals_torch_for_any_options(
    N, K, d, bias, weighted, reduction, ignored, ignore_index, smoothing, probabilities, seed
):
    H, W, b, y, v = problem(N, K, d, seed=seed)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = v
    if probabilities:
        y = torch.rand(N, K, dtype=torch.float64, generator=torch.manual_seed(seed)).softmax(1)
    else:
        options["ignore_index"] = ignore_index
        y[torch.rand(N, generator=torch.manual_seed(seed)) < ignored] = ignore_index
    leaves = [H, W, b] if bias else [H, W]
    theirs = expected(H, W, y, b if bias else None, **options)
    ours = linear_cross_entropy(H, W, y, linear_bias=b if bias else None, **options)
    if reduction == "mean" and not torch.isfinite(theirs):
        assert torch.isnan(ours) and torch.isnan(theirs)
        return
    # A few hundred roundings of 1e-16.
    agree(ours, theirs, leaves, 1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "N, K, d",
    [
        (1, 2, 1),
        (64, 8, 16),  # aligned
        (131, 13, 37),  # prime
        (3000, 10, 64),  # several parts, register tiles
        (601, 300, 70),  # several parts, BLAS
        (300, 11_000, 48),  # classes in ranges, two chunks
    ],
)
def test_equals_torch_in_every_regime_of_the_kernels(N, K, d, reduction):
    H, W, b, y, v = problem(N, K, d)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        h, w, c = (x.detach().to(dtype).requires_grad_() for x in (H, W, b))
        for smoothing, weight in itertools.product((0.0, 0.1), (None, v.to(dtype))):
            options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
            # Torch works in float64 for both: its float32 is worse than what is tested here.
            theirs = expected(h.double(), w.double(), y, c.double(), **wide(options))
            ours = linear_cross_entropy(h, w, y, linear_bias=c, **options)
            agree(ours.double(), theirs, [h, w, c], tolerance)


def wide(options):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def test_one_sample_without_a_batch():
    H, W, b, y, v = problem(N=1)
    for reduction in REDUCTIONS:
        options = {"weight": v, "reduction": reduction, "label_smoothing": 0.1}
        theirs = expected(H[0], W, y[0], b, **options)
        agree(linear_cross_entropy(H[0], W, y[0], linear_bias=b, **options), theirs, [H, W], 1e-12)
        p = torch.softmax(b.detach(), 0)
        theirs = expected(H[0], W, p, b, **options)
        agree(linear_cross_entropy(H[0], W, p, linear_bias=b, **options), theirs, [H, W], 1e-12)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_further_dimensions(reduction, probabilities):
    """One classifier for each of 2 x 3 places; torch takes the logits' classes first."""
    g = torch.Generator().manual_seed(0)
    N, K, d = 5, 4, 3
    H = torch.randn(N, d, generator=g, dtype=torch.float64, requires_grad=True)
    W = torch.randn(K, 2, 3, d, generator=g, dtype=torch.float64, requires_grad=True)
    b = torch.randn(K, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    v = torch.rand(K, generator=g, dtype=torch.float64)
    z = torch.einsum("nd,kpqd->nkpq", H, W) + b
    options = {"weight": v, "reduction": reduction, "label_smoothing": 0.1}
    if probabilities:
        y = torch.randn(N, K, 2, 3, generator=g, dtype=torch.float64).softmax(1)
    else:
        y = torch.randint(K, (N, 2, 3), generator=g)
        y[0, 1] = -100
    theirs = F.cross_entropy(z, y, **options)
    ours = linear_cross_entropy(H, W, y, linear_bias=b, **options)
    agree(ours, theirs, [H, W, b], 1e-12)


def test_the_module_is_torchs():
    ours = LinearCrossEntropyLoss(5, 7, bias=True, weight=torch.rand(7), label_smoothing=0.1)
    H, _, _, y, _ = problem(dtype=torch.float32)
    loss = ours(H, y)
    wanted = expected(H, ours.linear.weight, y, ours.linear.bias, weight=ours.weight,
                      label_smoothing=0.1)  # fmt: skip
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0.0)
    loss.backward()
    assert ours.linear.weight.grad.shape == (7, 5) and ours.linear.bias.grad.shape == (7,)
    places = LinearCrossEntropyLoss(5, 4, out_features=(2, 3), bias=True)
    assert places(H.detach(), torch.zeros(37, 2, 3, dtype=torch.int64)).shape == ()
    assert "num_classes=7" in repr(ours) and "label_smoothing=0.1" in repr(ours)
    if hasattr(torch.nn, "LinearCrossEntropyLoss"):
        theirs = torch.nn.LinearCrossEntropyLoss(
            5, 7, bias=True, weight=torch.rand(7), label_smoothing=0.1
        )
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(theirs(H, y), loss, rtol=1e-5, atol=0.0)
        parameters = inspect.signature(LinearCrossEntropyLoss).parameters
        assert not set(inspect.signature(torch.nn.LinearCrossEntropyLoss).parameters) - set(
            parameters
        )


def test_learns():
    """Ten steps down from the same start as torch's own."""
    H, W, b, y, _ = problem(dtype=torch.float32)
    ours, theirs = ([x.detach().clone().requires_grad_() for x in (W, b)] for _ in range(2))
    for leaves, loss in ((ours, linear_cross_entropy), (theirs, expected)):
        optimiser = torch.optim.SGD(leaves, lr=0.5)
        for _ in range(10):
            optimiser.zero_grad()
            loss(H.detach(), leaves[0], y, linear_bias=leaves[1]).backward()
            optimiser.step()
    for a, e in zip(ours, theirs, strict=True):
        # Ten steps of rounding.
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


# ruff: noqa: E501
H0, W0, Y0 = torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    "error, arguments, options, match",
    [
        (ValueError, (H0, W0, Y0), {"reduction": "avg"}, r"`reduction` must be 'mean', 'sum' or 'none'; got 'avg'"),
        (ValueError, (H0, W0, Y0), {"label_smoothing": 1.5}, r"`label_smoothing` must lie in \[0, 1\]; got 1.5"),
        (ValueError, (H0, torch.zeros(4, 3), Y0), {}, r"`linear_weight` must have 2 columns, as `input` has; got shape \(4, 3\)"),
        (IndexError, (H0, torch.zeros(0, 2), Y0), {}, r"`target` must lie in 0..-1"),
        (TypeError, (H0.int(), W0, Y0), {}, r"must hold floats of 16, 32 or 64 bits; got torch.int32"),
        (ValueError, (H0, W0, Y0[:2]), {}, r"`target` must have one label a sample, \(3,\); got \(2,\)"),
        (ValueError, (H0, W0, torch.zeros(3, 5)), {}, r"`target` must be \(3, 4\) where it holds probabilities; got \(3, 5\)"),
        (TypeError, (H0, W0, Y0.numpy()), {}, r"`target` must be a torch.Tensor; got ndarray. For NumPy arrays there is"),
        (TypeError, (H0, W0, Y0), {"weight": [1.0] * 4}, r"`weight` must be a torch.Tensor; got list"),
        (TypeError, (H0, W0, Y0), {"ignore_index": 1.5}, r"`ignore_index` must be an integer; got 1.5"),
        (ValueError, (H0, W0, Y0), {"label_smoothing": "0.1"}, r"`label_smoothing` must lie in \[0, 1\]; got '0.1'"),
        (TypeError, (H0, W0, Y0 > 0), {}, r"`target` must hold integers or probabilities; got torch.bool. Convert it: `target.long\(\)`"),
        (ValueError, (H0, W0, torch.tensor([0, 4, 1])), {}, r"`target` must lie in 0..3 .* got 4 at index 1"),
        (ValueError, (H0, W0, torch.tensor([0, -1, 1])), {}, r"or be `ignore_index`, -100; got -1 at index 1"),
        (ValueError, (H0, W0, Y0), {"linear_bias": torch.zeros(3)}, r"`linear_bias` must have shape \(4,\); got \(3,\)"),
        (ValueError, (H0, W0, Y0), {"weight": torch.zeros(4, 1)}, r"`weight` must have shape \(4,\); got \(4, 1\)"),
        (ValueError, (H0, W0, Y0), {"weight": torch.zeros(4, device="meta")}, r"`weight` must be on the device of `input`, cpu; got meta"),
        (ValueError, (torch.zeros(3, 1, 2), W0, Y0), {}, r"Flatten sequences to \(N, d\) and their targets to \(N,\)"),
        (ValueError, (H0, W0, torch.zeros(3, 4)), {"ignore_index": 2}, r"`ignore_index` must be left alone when `target` holds probabilities; got 2"),
        (TypeError, (H0, W0, Y0), {"options": {"chunk": 2}}, r"`options` must be a torch.nn.LinearCrossEntropyOptions or None; got dict"),
        (ValueError, (H0, W0, Y0), {"z_loss_weight": -1.0}, r"`z_loss_weight` must be a finite number of at least 0; got -1.0"),
        (ValueError, (H0, W0, Y0), {"logit_scale": float("inf")}, r"`logit_scale` must be a finite number; got inf"),
        (ValueError, (H0, W0, Y0), {"logit_scale": torch.ones(2)}, r"`logit_scale` must be a number or a tensor of one float without dimensions; got shape \(2,\)"),
        (ValueError, (H0, W0, Y0), {"softcap": 0.0}, r"`softcap` must be a finite number above 0; got 0.0"),
        (TypeError, (H0.to(torch.float8_e4m3fn), W0, Y0), {}, r"must hold floats of 16, 32 or 64 bits; got torch.float8_e4m3fn"),
        (TypeError, (H0, W0, torch.zeros(3, 4).to(torch.float8_e4m3fn)), {}, r"`target` must hold integers or floats of 16 to 64 bits; got torch.float8_e4m3fn"),
        (TypeError, (H0, W0, Y0), {"linear_bias": torch.zeros(4, dtype=torch.int64)}, r"`linear_bias` must hold floats of 16, 32 or 64 bits; got torch.int64"),
        (ValueError, (H0, torch.zeros(4, 5, 2), Y0), {}, r"`target` must be \(3, 5\); got \(3,\)"),
        (ValueError, (H0, torch.zeros(4, 5, 2), torch.zeros(3, 5, dtype=torch.int64)), {"linear_bias": torch.zeros(4)}, r"`linear_bias` must be \(4, 5\); got \(4,\)"),
    ],
)  # fmt: skip
def test_refusals(error, arguments, options, match):
    with pytest.raises(error, match=match):
        linear_cross_entropy(*arguments, **options)


@pytest.mark.parametrize(
    "torchs, arguments, match",
    [
        (IndexError, (H0, W0, torch.tensor([0, 4, 1])), r"`target` must lie in 0..3"),
        (RuntimeError, (H0, torch.zeros(4, 3), Y0), r"`linear_weight` must have 2 columns"),
        (RuntimeError, (H0, W0, Y0[:2]), r"`target` must have one label a sample"),
        (RuntimeError, (H0.to(torch.float8_e4m3fn), W0, Y0), r"must hold floats"),
    ],
)
def test_what_catches_torchs_errors_catches_ours(torchs, arguments, match):
    with pytest.raises(torchs, match=match):
        linear_cross_entropy(*arguments)


def _quantised(x):
    # The quantised dtypes are to leave torch, which says so.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(x, 1.0, 0, torch.qint8)


def _nested(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(x))


@pytest.mark.parametrize(
    "position, made, kind",
    [
        (0, torch.Tensor.to_sparse, "torch.sparse_coo"),
        (1, torch.Tensor.to_sparse, "torch.sparse_coo"),
        (2, torch.Tensor.to_sparse, "torch.sparse_coo"),
        (0, _nested, "nested"),
        (0, _quantised, "quantised"),
    ],
)
def test_only_dense_tensors(position, made, kind):
    arguments = [H0, W0, Y0]
    arguments[position] = made(arguments[position])
    with pytest.raises(ValueError, match=rf"must be dense tensors; got a {kind} one"):
        linear_cross_entropy(*arguments)


def test_the_module_refuses():
    with pytest.raises(ValueError, match=r"`weight` must have shape \(4,\); got \(3,\)"):
        LinearCrossEntropyLoss(2, 4, weight=torch.zeros(3))
    with pytest.raises(ValueError, match=r"`reduction` must be"):
        LinearCrossEntropyLoss(2, 4, reduction="avg")


def test_without_torch():
    code = "import sys; sys.modules['torch'] = None; import fastnc, fastnc.nn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: `fastnc.nn` needs torch") and "fastnc[torch]" in last
