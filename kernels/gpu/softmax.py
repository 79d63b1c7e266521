"""Softmax of one block of logits without cancellation: the functions that Triton kernels share.

For one sample, with `D_j = z_j - z_y` over the wrong classes j (equation (4)):

    s    = max_j D_j if that is positive, else the common shift M <= 0   (M = 0: the plain form)
    t_j  = exp(D_j - s),  S = sum_{j != y} t_j
    loss = s + log(e^-s + S)              if s > 0
         = S log1p(x) / x,  x = e^s S     otherwise, in units of e^s: log1p(S) when s = 0
    r_j  = t_j / den,  r_y = -S / den     den = e^-s + S, or 1 + x in units of e^s

Every term is positive: nothing cancels, at any margin. The functions below are inlined.

The hardware's exponential flushes subnormal results to 0, and bf16 parts lose digits some 2^9 above
these: a residual would vanish at a margin of 87. So t, S and r are lifted: stored times 2^LIFT; the
code that sums them multiplies the sum by DOWN.
"""

import triton
import triton.language as tl

LIFT = tl.constexpr(30)
UP, DOWN = tl.constexpr(2.0**30), tl.constexpr(2.0**-30)


@triton.jit
def _exp_double(x, lift: tl.constexpr):
    """`2^lift e^x`, `e^x = 2^n e^f`, |f| <= log(2)/2, the Taylor series of degree 13; no branch.

    Its remainder is below 5e-18. Results under the smallest normal number are zero.
    """
    magic: tl.constexpr = 6755399441055744.0
    shifted = x * 1.4426950408889634 + magic
    n = shifted - magic
    # Not tl.fma, which would round these constants to float32; the first product is exact.
    f = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = f * 1.6059043836821613e-10 + 2.08767569878681e-09
    p = p * f + 2.505210838544172e-08
    p = p * f + 2.755731922398589e-07
    p = p * f + 2.7557319223985893e-06
    p = p * f + 2.48015873015873e-05
    p = p * f + 0.0001984126984126984
    p = p * f + 0.001388888888888889
    p = p * f + 0.008333333333333333
    p = p * f + 0.041666666666666664
    p = p * f + 0.16666666666666666
    p = p * f + 0.5
    p = tl.fma(p * f, f, f) + 1.0
    # The bits of `shifted` end in n: added to the exponent they multiply by 2^n.
    bits = p.to(tl.int64, bitcast=True) + ((shifted.to(tl.int64, bitcast=True) + lift) << 52)
    return tl.where(x < -708.0 - 0.69 * lift, 0.0, bits.to(tl.float64, bitcast=True))


@triton.jit
def exp(x):
    """`e^x` for x <= 0, to 2 units in the last place at any x.

    The hardware's float32 exponential has base 2: the rounding error of `x log2(e)` would cost |x|
    units, so it is computed too and corrected. Below -200 the result is zero anyway; the bound
    keeps an infinite x from becoming infinity minus infinity. NaN stays NaN.
    """
    if x.dtype == tl.float64:
        return _exp_double(x, 0)
    else:
        x = tl.where(x < -200.0, -200.0, x)
        high = x * 1.4426950216293335
        low = tl.fma(x, 1.4426950216293335, -high) + x * 1.925963033500e-08
        e = tl.exp2(high)
        return tl.fma(e, low * 0.6931471805599453, e)


@triton.jit
def lifted_exp(x):
    """`2^LIFT e^x` for x <= 0, as exact as `exp`, and right where e^x is no normal number."""
    if x.dtype == tl.float64:
        return _exp_double(x, LIFT)
    else:
        x = tl.where(x < -200.0, -200.0, x)
        high = x * 1.4426950216293335
        low = tl.fma(x, 1.4426950216293335, -high) + x * 1.925963033500e-08
        # The sum is exact where high is that large; elsewhere the product is.
        far = high < -60.0
        e = tl.exp2(tl.where(far, high + LIFT, high)) * tl.where(far, 1.0, UP)
        return tl.fma(e, low * 0.6931471805599453, e)


@triton.jit
def log1p(x):
    """`log(1 + x)` for x >= 0 with a relative error of a few units at every x.

    Triton has no log1p without libdevice. For x < 1, `2 atanh(x / (2 + x))` by its series;
    the argument is at most 1/3, so 17 terms serve float64 and 8 float32.
    """
    terms: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    s = x / (x + 2.0)
    q = s * s
    p = q * 0.0 + 1.0 / (2 * terms + 1)
    for i in tl.static_range(terms):
        p = p * q + 1.0 / (2 * (terms - i) - 1)
    return tl.where(x < 1.0, 2.0 * s * p, tl.log(x + 1.0))


@triton.jit
def gaps(Z, label, real):
    """`D_j` (-inf at the label and at padded classes) and its maximum of each row."""
    z_y = tl.sum(tl.where(label, Z, 0.0), axis=1)
    D = tl.where(real & (label == 0), Z - z_y[:, None], float("-inf"))
    return D, tl.max(D, axis=1)


@triton.jit
def losses_and_weights(S, s):
    """Loss, float64 in units of `e^min(s, 0)`, and `1 / den`, of lifted sums S at the shift s."""
    up = s > 0.0
    e = exp(-tl.abs(s))
    plain = S * DOWN
    x = e * plain
    den = tl.where(up, e + plain, 1.0 + x)
    # Below 1e-30 the quotient is 1 to the last bit, and 0 / 0 is avoided.
    ratio = tl.where(x < 1e-30, 1.0, log1p(x) / tl.where(x < 1e-30, 1.0, x))
    small = (S * ratio).to(tl.float64) * DOWN
    return tl.where(up, (s + tl.log(den)).to(tl.float64), small), 1.0 / den


@triton.jit
def residuals(D, m, label, M):
    """Losses and lifted residuals `p - onehot` at the common shift M <= 0, in units of `e^M`."""
    s = tl.where(m > 0.0, m, M)
    t = lifted_exp(D - s[:, None])
    S = tl.sum(t, axis=1)
    loss, weight = losses_and_weights(S, s)
    r = tl.where(label, -S[:, None], t) * weight[:, None]
    return loss, r


@triton.jit
def block_shift(m, rows_real):
    """The common shift of a block: its largest gap, at most 0; padded rows do not count."""
    return tl.minimum(tl.max(tl.where(rows_real, m, float("-inf")), axis=0), 0.0)
