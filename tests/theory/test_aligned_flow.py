"""The exact law from an aligned start against mpmath and an ODE solver; rates and constants."""

import math
import re

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from fastnc import reference
from fastnc.theory.aligned_flow import AlignedFlow
from fastnc.theory.rates import constants, exponents, fitted_exponent

LAWS = [(5, 10, 0.8, 0.3), (3, 2, 0.4, 0.9), (2, 1, 1.0, 1.0), (4, 4, 1.0, 0.5)]


def exact_log_time(law, gap):
    """log of N/K times the integral of (e^s + K - 1) / R(s), by mpmath's quadrature."""
    K, n = law.n_classes, law.n_per_class
    with mp.workdps(30):
        u, v, a = mp.mpf(law.u), mp.mpf(law.v), mp.mpf(gap)
        c0 = u * u - n * v * v

        def integrand(w):
            s = a - w
            return (mp.exp(-w) + (K - 1) * mp.exp(-a)) / mp.sqrt(c0**2 + 4 * n * s**2)

        width = a - u * v
        points = [p for p in (0, 1, 5, 20, 80) if p < width] + [width]
        return float(a + mp.log(n * mp.quad(integrand, points)))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("gap", [1.5, 12.0, 300.0, 2e4])
def test_log_time_is_the_integral(law, gap):
    law = AlignedFlow(*law)
    # The adaptive rule is asked for 1e-13.
    assert law.log_time(gap) == pytest.approx(exact_log_time(law, gap), rel=1e-12, abs=1e-12)


def test_log_time_is_an_exponential_integral_when_balanced():
    K, n = 4, 4
    law = AlignedFlow(K, n, 1.0, 0.5)
    assert law.conserved == 0.0
    for gap in (0.7, 3.0, 40.0):
        with mp.workdps(40):
            a, start = mp.mpf(gap), mp.mpf("0.5")
            t = mp.ei(a) - mp.ei(start) + (K - 1) * mp.log(a / start)
            t *= mp.mpf(n * K) / (2 * K * mp.sqrt(n))
            exact = float(mp.log(t))
        assert law.log_time(gap) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    "scales", [(1e-30, 1e-30), (2e-60, 1e-60), (1e-100, 1e-40), (1e-140, 1e-160)]
)
@pytest.mark.parametrize("gap", [1e-20, 0.5, 30.0, 2e3])
def test_starts_next_to_nothing(scales, gap):
    """There 1 / R(s) is 1 / s over sixty decades and more; s = c0 sinh(x) / 2 sqrt n makes it 1."""
    K, n = 3, 4
    law = AlignedFlow(K, n, *scales)
    with mp.workdps(400):
        u, v = mp.mpf(scales[0]), mp.mpf(scales[1])
        c0, root = abs(u * u - n * v * v), 2 * mp.sqrt(n)
        first, last = (mp.mpf(gap), u * v) if c0 == 0 else (root * gap / c0, root * u * v / c0)
        first, last = (mp.log(first), mp.log(last)) if c0 == 0 else map(mp.asinh, (first, last))
        rest = exact_rest(c0, root, mp.mpf(gap))
        exact = float(gap + mp.log(n * (rest + K * mp.exp(-mp.mpf(gap)) * (first - last) / root)))
    assert law.log_time(gap) == pytest.approx(exact, rel=1e-12, abs=1e-12)
    # Next to 0 it grows like e^ct, so that an error of t counts c t times, at most 645 here.
    assert law.gap(exact) == pytest.approx(gap, rel=1e-10)


def exact_rest(c0, root, gap):
    """The integral of e^(s - gap) (1 - e^-s) / R(s) from 0; what begins above 0 is no larger."""
    with mp.workdps(30):

        def integrand(s):
            return mp.exp(s - gap) * -mp.expm1(-s) / mp.sqrt(c0**2 + (root * s) ** 2)

        points = [max(gap - w, mp.mpf(0)) for w in (80, 20, 5, 1, 0)]
        return mp.quad(integrand, sorted({mp.mpf(0), *points}))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("log_time", [-3.0, 0.0, 1.0, 7.0, 1e4])
def test_the_gap_inverts_the_time(law, log_time):
    law = AlignedFlow(*law)
    gap = law.gap(log_time)
    # A root to rounding; for early times a derivative of up to e^3 stands between.
    assert law.log_time(gap) == pytest.approx(log_time, rel=1e-13, abs=1e-11)
    u, v = law.scales(log_time)
    n = law.n_per_class
    assert u * v == pytest.approx(gap, rel=1e-14)
    # c0 is a difference of squares that grow with the gap.
    assert u * u - n * v * v == pytest.approx(law.conserved, abs=1e-14 * (u * u + n * v * v))
    assert law.radius(gap) == pytest.approx(u * u + n * v * v, rel=1e-14)
    log_loss = math.log(law.n_classes - 1) - gap
    if log_loss > -30:
        log_loss = math.log(math.log1p(math.exp(log_loss)))
    assert law.log_loss(log_time) == pytest.approx(log_loss, rel=1e-12)


def test_it_is_the_flow_of_every_entry():
    """The whole system of (K + N) d equations under an explicit solver, to t = 50."""
    law, d = AlignedFlow(3, 2, 0.4, 0.9), 4
    rng = np.random.default_rng(0)
    frozen = rng.standard_normal((3, 2, 2))
    frozen -= frozen.mean(axis=1, keepdims=True) - 0.3
    W, H = law.point(d, frozen.reshape(6, 2))
    y = np.repeat(np.arange(3), 2)

    def rhs(_, theta):
        at = theta[:12].reshape(3, d), theta[12:].reshape(-1, d)
        _, grad_W, grad_H = reference.loss_and_grads(*at, y)
        return -np.concatenate([grad_W.ravel(), grad_H.ravel()]) / 6

    times = [0.5, 5.0, 50.0]
    start = np.concatenate([W.ravel(), H.ravel()])
    done = solve_ivp(rhs, (0, 50), start, "DOP853", times, rtol=1e-12, atol=1e-13)
    for i, t in enumerate(times):
        exact_W, exact_H = law.point(d, frozen.reshape(6, 2), math.log(t))
        # The solver's own tolerance, over some hundred steps.
        np.testing.assert_allclose(done.y[:12, i].reshape(3, d), exact_W, atol=1e-10)
        np.testing.assert_allclose(done.y[12:, i].reshape(-1, d), exact_H, atol=1e-10)


def test_exponents_and_where_they_do_not_hold():
    found = exponents(5, 20)
    assert found.pop("within_class") == -0.5
    assert set(found.values()) == {-1.0} and {"1 - margin_ratio", "1 - beta"} <= set(found)
    with pytest.raises(ValueError, match="`dim` must be at least n_classes = 5 for these rates"):
        exponents(5, 4)


def test_constants_of_a_state_made_by_hand():
    """A late state u U + wbar, v Y U + Delta: all constants are those that it was made of."""
    K, n, d = 4, 3, 7
    rng = np.random.default_rng(1)
    law = AlignedFlow(K, n, 3.0, 2.0)
    wbar, g = rng.standard_normal((2, d - K + 1)) * 0.3
    delta = rng.standard_normal((K, n, d - K + 1))
    delta -= delta.mean(axis=1, keepdims=True)
    W, H = law.point(d, (delta + g).reshape(K * n, -1))
    W[:, K - 1 :] = wbar
    y = np.repeat(np.arange(K), n)
    lengths = np.linalg.norm(delta.reshape(K * n, -1), axis=1)
    found = constants(W, H, y)
    r = 1 - 1 / K
    # Sums of squares of a few dozen numbers of size 1.
    assert found.within_class == pytest.approx(lengths.mean() * n**0.25 / math.sqrt(r), rel=1e-12)
    missing = K * wbar @ wbar + K * n * g @ g + (lengths**2).sum()
    assert found.margin_deficit == pytest.approx(missing / (2 * math.sqrt(n) * (K - 1)), rel=1e-12)
    # W and H are exactly aligned: F is c0 C, whose diagonal does not vary.
    assert found.equinorm == pytest.approx(0.0, abs=1e-12)
    assert found.smallest_singular_value == pytest.approx(3.0 + 2.0 * math.sqrt(n), rel=1e-12)
    with pytest.raises(ValueError, match=re.escape("must have equal sizes; got [4, 3, 3, 2]")):
        constants(W, H, np.r_[y[:-1], 0])


def test_a_fitted_exponent_is_a_slope():
    times = np.r_[-np.inf, np.logspace(0, 4, 81)]
    column = np.r_[3.0, 7.0 * np.logspace(0, 4, 81) ** -0.5]
    # log log t is log10 t up to a constant; a straight line is fitted exactly, to rounding.
    assert fitted_exponent(times, column, 1e3, 1e4) == pytest.approx(-0.5, abs=1e-12)
    with pytest.raises(ValueError, match=r"at least 3 snapshots between log10 t = 100000"):
        fitted_exponent(times, column, 1e5, 1e6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: AlignedFlow(1, 1, 1.0, 1.0), "`n_classes` must be an integer of at least 2"),
        (lambda: AlignedFlow(3, 0, 1.0, 1.0), "`n_per_class` must be an integer of at least 1"),
        (lambda: AlignedFlow(3, 1, 0.0, 1.0), "`u` must be a positive number; got 0.0"),
        (lambda: AlignedFlow(3, 1, 1e-160, 1e-150), "`u` and `v` must be at most 1e+150 and have"),
        (lambda: AlignedFlow(3, 1, 1.0, 1e200), "`u` and `v` must be at most 1e+150 and have"),
        (lambda: AlignedFlow(3, 1, 1.0, 1.0).point(1), "`dim` must be at least n_classes - 1 = 2"),
        (
            lambda: AlignedFlow(2, 2, 1.0, 1.0).point(2, np.array([[1.0], [2.0], [3.0], [1.0]])),
            "`frozen` must have the same mean in every class",
        ),
    ],
)
def test_bad_arguments(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()
