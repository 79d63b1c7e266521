"""What the mathematics says must not change, or must change in a known way, for any problem."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastnc

# Compiling a kernel takes the first example seconds; the draw itself is small and fast.
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
# Sums of at most 40 x 9 terms of size 1: some hundred rounding errors of 2^-53.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def problems(draw):
    """W (K, d), H (N, d), y (N,) with entries of size 1 to 10, some classes absent."""
    K, d, N = draw(st.integers(2, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([0.1, 1.0, 3.0]))
    W, H = size * rng.standard_normal((K, d)), size * rng.standard_normal((N, d))
    return W, H, rng.integers(0, K, N), rng


@FEW
@given(problems())
def test_rotation(problem):
    W, H, y, rng = problem
    Q, _ = np.linalg.qr(rng.standard_normal((W.shape[1],) * 2))
    value, dW, dH = fastnc.loss_and_grads(W, H, y)
    turned, turned_W, turned_H = fastnc.loss_and_grads(W @ Q, H @ Q, y)
    np.testing.assert_allclose(turned, value, **CLOSE)
    np.testing.assert_allclose(turned_W, dW @ Q, **CLOSE)
    np.testing.assert_allclose(turned_H, dH @ Q, **CLOSE)


@FEW
@given(problems())
def test_permutation_of_classes_and_samples(problem):
    W, H, y, rng = problem
    classes, samples = rng.permutation(len(W)), rng.permutation(len(H))
    value, dW, dH = fastnc.loss_and_grads(W, H, y)
    name = np.argsort(classes)
    renamed, renamed_W, renamed_H = fastnc.loss_and_grads(W[classes], H[samples], name[y[samples]])
    np.testing.assert_allclose(renamed, value, **CLOSE)
    np.testing.assert_allclose(renamed_W, dW[classes], **CLOSE)
    np.testing.assert_allclose(renamed_H, dH[samples], **CLOSE)


@FEW
@given(problems(), st.integers(2, 4))
def test_duplicated_samples(problem, copies):
    W, H, y, _ = problem
    value, dW, dH = fastnc.loss_and_grads(W, H, y)
    many = fastnc.loss_and_grads(W, np.tile(H, (copies, 1)), np.tile(y, copies))
    np.testing.assert_allclose(many[0], value, **CLOSE)
    np.testing.assert_allclose(many[1], dW, **CLOSE)
    np.testing.assert_allclose(many[2], np.tile(dH, (copies, 1)) / copies, **CLOSE)


@FEW
@given(problems())
def test_a_vector_common_to_all_classifiers_changes_nothing(problem):
    W, H, y, rng = problem
    value, dW, dH = fastnc.loss_and_grads(W, H, y)
    shifted = fastnc.loss_and_grads(W + rng.standard_normal(W.shape[1]), H, y)
    # The shift moves every logit by up to ten, and with it the rounding of the gaps.
    for a, b in zip(shifted, (value, dW, dH), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(dW.sum(axis=0), 0.0, atol=1e-12)


@FEW
@given(problems(), st.floats(0.1, 10.0))
def test_scaling(problem, factor):
    W, H, y, _ = problem
    q = fastnc.margins(W, H, y)
    # What W gains H loses: logits stay, and a gradient scales against its variable.
    value, dW, dH = fastnc.loss_and_grads(W, H, y)
    traded = fastnc.loss_and_grads(W * factor, H / factor, y)
    np.testing.assert_allclose(traded[0], value, **CLOSE)
    np.testing.assert_allclose(traded[1], dW / factor, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(traded[2], dH * factor, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(fastnc.margins(W * factor, H * factor, y), factor**2 * q,
                               rtol=1e-12, atol=1e-10)  # fmt: skip
    np.testing.assert_allclose(
        fastnc.margin_ratio(W * factor, H * factor, y), fastnc.margin_ratio(W, H, y), rtol=1e-10
    )
    assert fastnc.margin_ratio(W, H, y) <= 1.0 + 1e-12


@FEW
@given(problems())
def test_log_domain_is_the_logarithm(problem):
    W, H, y, _ = problem
    value, dW, dH = fastnc.loss_and_grads(W, H, y)
    log_value, log_dW, log_dH = fastnc.log_loss_and_grads(W, H, y)
    np.testing.assert_allclose(np.exp(log_value), value, rtol=1e-12)
    np.testing.assert_allclose(log_dW * value, dW, **CLOSE)
    np.testing.assert_allclose(log_dH * value, dH, **CLOSE)


@FEW
@given(problems())
def test_single_precision_is_double_precision_rounded(problem):
    W, H, y, _ = problem
    W32, H32 = W.astype(np.float32), H.astype(np.float32)
    single = fastnc.loss_and_grads(W32, H32, y)
    double = fastnc.loss_and_grads(W32.astype(np.float64), H32.astype(np.float64), y)
    assert single[1].dtype == single[2].dtype == np.float32
    # Logits of size 100 carry an error of 100 x 2^-24, which the exponential makes relative.
    for a, b in zip(single, double, strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * scale)


@FEW
@given(problems(), st.integers(1, 3))
def test_statistics_merge_in_any_order(problem, cuts):
    _, H, y, rng = problem
    K, d = 9, H.shape[1]
    where = np.sort(rng.integers(0, len(H) + 1, cuts))
    parts = []
    for h, labels in zip(np.split(H, where), np.split(y, where), strict=True):
        part = fastnc.ClassStatistics(n_classes=K, dim=d, scatter="full")
        if len(h):
            part.update(h, labels)
        parts.append(part)
    whole = fastnc.ClassStatistics(n_classes=K, dim=d, scatter="full")
    whole.update(H, y)
    merged = fastnc.ClassStatistics(n_classes=K, dim=d, scatter="full")
    for i in rng.permutation(len(parts)):
        merged.merge(parts[i])
    np.testing.assert_array_equal(merged.counts, whole.counts)
    present = whole.counts > 0
    np.testing.assert_allclose(merged.means[present], whole.means[present], **CLOSE)
    np.testing.assert_allclose(merged.within, whole.within, **CLOSE)


@FEW
@given(problems())
def test_metrics_do_not_see_rotation_nor_order(problem):
    W, H, y, rng = problem
    if len(np.unique(y)) < 2:
        return
    Q, _ = np.linalg.qr(rng.standard_normal((W.shape[1],) * 2))
    samples = rng.permutation(len(H))
    one = fastnc.collapse_metrics(H, y, W).as_dict()
    other = fastnc.collapse_metrics(H[samples] @ Q, y[samples], W @ Q).as_dict()
    assert one.keys() == other.keys()
    # The means' Gram matrix may be nearly singular: its inverse loses half of the digits.
    for name, value in one.items():
        if isinstance(value, float) and np.isfinite(value) and abs(value) < 1e6:
            np.testing.assert_allclose(other[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


@FEW
@given(problems())
def test_hessian_is_symmetric_and_the_derivative_of_the_gradient(problem):
    W, H, y, rng = problem
    one = rng.standard_normal(W.shape), rng.standard_normal(H.shape)
    two = rng.standard_normal(W.shape), rng.standard_normal(H.shape)
    by_one = fastnc.hessian_vector_product(W, H, y, *one, reduction="sum")
    by_two = fastnc.hessian_vector_product(W, H, y, *two, reduction="sum")
    scale = sum(np.abs(x).sum() for x in (*by_one, *by_two)) + 1.0
    left = sum(np.vdot(a, b) for a, b in zip(by_one, two, strict=True))
    right = sum(np.vdot(a, b) for a, b in zip(by_two, one, strict=True))
    assert abs(left - right) <= 1e-12 * scale
