"""The compiled loop of rules against that of NumPy, lanes without samples, Adam's quotients."""

import numpy as np
import pytest
from rule_loops import CASES, MODEL, R, gradients

import fastnc
from fastnc.dynamics.steppers import compiled


# Four classes are one pass of the compiled loop on processors with few registers too.
@pytest.mark.parametrize("name", ["heavy ball", "nesterov", "adam, coupled", "adamw", "decayed"])
def test_the_compiled_loop_and_the_numpy_one_agree(name, monkeypatch):
    rule = CASES[name][0]
    for dtype, atol in (("float64", 1e-11), ("float32", 2e-4)):
        run = fastnc.descend(MODEL, rule=rule, epochs=300, snapshots=2, dtype=dtype)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "serves", lambda model, rule: False)
            other = fastnc.descend(MODEL, rule=rule, epochs=300, snapshots=2, dtype=dtype)
        # 300 epochs of a few ulp of numbers up to 10; Adam's quotients amplify a float32's.
        np.testing.assert_allclose(run.W, other.W, rtol=0, atol=atol)
        np.testing.assert_allclose(run.H, other.H, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lanes_that_hold_no_sample_stay_out_of_it(dtype):
    """13 samples, 3 features: lanes to spare in every vector; an absent class among the labels."""
    y = np.array([3, 0, 3, 3, 1, 0, 3, 1, 1, 0, 3, 3, 1])
    model = fastnc.ULPM(4, dim=3, labels=y)
    rule = R.AdamW((1e-2, 2e-2), weight_decay=0.1)
    assert compiled.serves(model, rule)
    run = fastnc.descend(model, rule=rule, epochs=200, dtype=dtype, snapshots=3)
    m, v = [0.0, 0.0], [0.0, 0.0]
    theta = [x.astype(np.float64) for x in model.init(0, dtype)]
    for t in range(1, 201):
        for i, g in enumerate(gradients(*theta, y)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            theta[i] = theta[i] - (1e-2, 2e-2)[i] * (
                m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8) + 0.1 * theta[i]
            )
    # A few ulp an epoch, of float32 with what its gradients round.
    atol = 1e-11 if dtype == "float64" else 1e-4
    for x, other in zip((run.W, run.H), theta, strict=True):
        np.testing.assert_allclose(x, other, rtol=0, atol=atol)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_adam_multiplies_with_is_within_eight_ulp(count, dtype):
    """c / (sqrt(v) + e) of vectors together; from estimates of 14 bits, where there are some."""
    from fastnc.kernels.cpu.adam import rates_of_adam
    from fastnc.kernels.cpu.options import OPTIONS, njit
    from fastnc.kernels.cpu.processor import native_lanes
    from fastnc.kernels.cpu.simd import zeros
    from fastnc.kernels.cpu.simd_blocks import load_members, store_members

    rng = np.random.default_rng(0)
    lanes, single = native_lanes(dtype), dtype == "float32"

    @njit(**OPTIONS)
    def rates(v, e, c, out):
        for i in range(0, v.size, count * lanes):
            some = load_members(v, i, lanes, zeros(v, count, lanes))
            store_members(out, i, lanes, rates_of_adam(some, e, c))

    n = 64 * lanes
    v = (10.0 ** rng.uniform(-20 if single else -200, 10, n)).astype(dtype)
    # The least that the loop gives it.
    v[:lanes] = 1e-36 if single else 1e-290
    (e, c), out = np.array([1e-8, 1e-3], dtype), np.empty_like(v)
    wide = np.float64 if single else np.longdouble
    rates(v, e, c, out)
    exact = wide(c) / (np.sqrt(v.astype(wide)) + wide(e))
    error = np.abs(out - exact) / exact / np.finfo(dtype).eps
    assert error.max() < 8.0
    if count == 8 and not single and lanes == 8:
        # A product of eight that is no float must not pass for a rate of 0.
        rates(np.full(n, 1e77), e, c, out)
        assert np.isnan(out).all()
