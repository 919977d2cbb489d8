"""Gamma distribution maths on MLX arrays: log pdf, cdf, mode and quantiles.

Knows nothing of tokens, budgets or models. All functions are elementwise, broadcast
their arguments and compute in float32. A distribution is given by its concentration
(shape) and rate (inverse scale).

The regularised lower incomplete gamma function P(a, z) is evaluated from Temme's
uniform asymptotic expansion (NIST DLMF 8.12) at a + 8, and carried down to a with the
recurrence P(a, z) = P(a + 1, z) + z^a e^-z / Gamma(a + 1) (DLMF 8.8.5), whose terms
are all positive. The exponential factor is written as exp(-a (m - log(1 + m))) with
m = (z - a) / a, so nothing large cancels however large the concentration is. The
constants are shared with the fused kernel in `kernels`.
"""

import mlx.core as mx

SHIFT = 8
FLOAT32_MAX = 3.4e38
FLOAT32_TINY = 1.1754944e-38
SQRT_TWO_PI = 2.5066282746310002
HALF_LOG_TWO_PI = 0.9189385332046727

# erfcx(y) = t * sum(c_k t^k) with t = 1 / (1 + y / 2), y >= 0: Chebyshev fit of
# degree 10 in t, relative error below 2e-8 in exact arithmetic.
ERFCX = (
    0.282094795,
    0.282093777,
    0.24688388,
    0.175324075,
    0.0934147485,
    -0.05905091,
    0.13185004,
    -0.454563718,
    0.493385742,
    -0.234605491,
    0.0431730659,
)

# Taylor series in eta of the first three coefficients of DLMF 8.12.7; their closed
# forms (8.12.9 to 8.12.12) cancel near eta = 0.
TEMME_C0 = (
    -0.3333333333,
    0.08333333333,
    -0.01481481481,
    0.001157407407,
    0.0003527336861,
    -0.000178755144,
    3.919263179e-05,
    -2.185448511e-06,
)
TEMME_C1 = (
    -0.001851851852,
    -0.003472222222,
    0.002645502646,
    -0.0009902263374,
    0.0002057613169,
    -4.01877572e-07,
    -1.809855033e-05,
)
TEMME_C2 = (
    0.004133597884,
    -0.002681327161,
    0.0007716049383,
    2.009387860e-06,
    -0.0001073665323,
)


def log_pdf(x: mx.array, concentration: mx.array, rate: mx.array) -> mx.array:
    """Log density, in nats, of Gamma(concentration, rate) at ``x``.

    Differentiable in all arguments. Concentrations below the smallest normal float32,
    1.2e-38, count as that, with gradient 0: what softplus gives may underflow.

    Args:
        x (mx.array): Where to evaluate, x > 0.
        concentration (mx.array): Shape of the distribution, >= 0.
        rate (mx.array): Inverse scale of the distribution, > 0.

    Returns:
        mx.array: float32, of the broadcast shape of the arguments.
    """
    x, a, rate = _float32(x, concentration, rate)
    a = mx.maximum(a, FLOAT32_TINY)
    z = rate * x
    # z / a overflows at small a, where nothing large cancels. Each branch sees only
    # concentrations it is right for, so that gradients are, too.
    is_small = a < 1
    small, large = mx.where(is_small, a, 1), mx.where(is_small, 1, a)
    direct = small * mx.log(z) - z - _log_gamma_1p_below_1(small)
    log_prefactor = mx.where(is_small, direct, _log_prefactor(large, z))
    return mx.log(a) - mx.log(x) + log_prefactor


def log_cdf(x: mx.array, concentration: mx.array, rate: mx.array) -> mx.array:
    """Log probability, in nats, that Gamma(concentration, rate) is at most ``x``.

    For concentrations from 1 to 5,000 the probability is right to 1e-5 absolute, and
    to 1e-4 relative wherever it exceeds 1e-6. Far below that it stays finite and
    monotone where the probability itself would underflow.

    Args:
        x (mx.array): Where to evaluate, x >= 0.
        concentration (mx.array): Shape of the distribution, > 0.
        rate (mx.array): Inverse scale of the distribution, > 0.

    Returns:
        mx.array: float32, of the broadcast shape of the arguments; -inf at x = 0.
    """
    x, a, rate = _float32(x, concentration, rate)
    # 0 times infinity is 0 here, whichever of the two is infinite.
    return _log_regularized_gamma(a, mx.where((x > 0) & (rate > 0), rate * x, 0))


def cdf(x: mx.array, concentration: mx.array, rate: mx.array) -> mx.array:
    """Probability that Gamma(concentration, rate) is at most ``x``: see `log_cdf`."""
    return mx.exp(log_cdf(x, concentration, rate))


def mode(concentration: mx.array, rate: mx.array) -> mx.array:
    """Most likely value of Gamma(concentration, rate); 0 for concentrations below 1.

    Returns:
        mx.array: float32, of the broadcast shape of the arguments.
    """
    a, rate = _float32(concentration, rate)
    return mx.maximum(a - 1, 0) / rate


def quantile(q: mx.array, concentration: mx.array, rate: mx.array) -> mx.array:
    """The x below which Gamma(concentration, rate) has probability ``q``.

    Found by bisection of `log_cdf`; meant for a handful of values, not a vocabulary.

    Args:
        q (mx.array): Probabilities, 0 < q < 1.
        concentration (mx.array): Shape of the distribution, > 0.
        rate (mx.array): Inverse scale of the distribution, > 0.

    Returns:
        mx.array: float32, of the broadcast shape of the arguments.
    """
    q, a, rate = _float32(mx.array(q), concentration, rate)
    log_q = mx.log(q)
    # In log(z), z = rate * x: the upper end is where P(a, z) rounds to 1, and
    # P(a, z) <= z^a / Gamma(a + 1) puts every q above the lower end.
    low = mx.broadcast_to((log_q + _log_gamma_1p(a)) / a - 1, (log_q + a).shape)
    high = mx.broadcast_to(mx.log(4 * a + 100), low.shape)
    low = mx.minimum(low, high)
    for _ in range(48):
        middle = (low + high) / 2
        below = _log_regularized_gamma(a, mx.exp(middle)) < log_q
        low = mx.where(below, middle, low)
        high = mx.where(below, high, middle)
    return mx.exp((low + high) / 2) / rate


def _float32(*arrays: mx.array) -> list[mx.array]:
    return [mx.array(v).astype(mx.float32) for v in arrays]


def polynomial(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    """A polynomial of degree 1 or more, its coefficients in ascending order."""
    *lower, second, first = coefficients
    y = first * x + second
    for c in reversed(lower):
        y = y * x + c
    return y


def _stirling_series(a: mx.array) -> mx.array:
    """log Gamma(a + 1) - (a log a - a + log(2 pi a) / 2) for a >= 8 (DLMF 5.11.1)."""
    r = 1 / a
    r2 = r * r
    return r * (1 / 12 - r2 * (1 / 360 - r2 / 1260))


def _stirling_error(a: mx.array) -> mx.array:
    """As `_stirling_series`, for every a > 0."""
    is_small = a < SHIFT
    # Each branch sees only arguments it is right for, so that gradients are, too.
    large = mx.where(is_small, SHIFT, a)
    small = mx.where(is_small, a, SHIFT)
    shifted = small + SHIFT
    ratio = mx.log(shifted / small)
    carried = (
        _stirling_series(shifted)
        + (small + 0.5) * ratio
        + SHIFT * (mx.log(shifted) - 1)
        - mx.log(_rising_product(small))
    )
    return mx.where(is_small, carried, _stirling_series(large))


def _log_gamma_1p(a: mx.array) -> mx.array:
    """log Gamma(a + 1) for a > 0."""
    return (a + 0.5) * mx.log(a) - a + HALF_LOG_TWO_PI + _stirling_error(a)


def _log_gamma_1p_below_1(a: mx.array) -> mx.array:
    """As `_log_gamma_1p`, for 0 <= a <= 1, to 1e-5 absolute; its gradient, too."""
    shifted = a + SHIFT
    return (
        (shifted + 0.5) * mx.log(shifted)
        - shifted
        + HALF_LOG_TWO_PI
        + _stirling_series(shifted)
        - mx.log(_rising_product(a))
    )


def _rising_product(a: mx.array) -> mx.array:
    """(a + 1) (a + 2) ... (a + SHIFT), which is Gamma(a + SHIFT + 1) / Gamma(a + 1)."""
    product = a + 1
    for j in range(2, SHIFT + 1):
        product = product * (a + j)
    return product


def _half_eta_squared(a: mx.array, z: mx.array) -> mx.array:
    """m - log(1 + m) with m = (z - a) / a, to full relative accuracy for z near a."""
    m = (z - a) / a
    s = m / (2 + m)
    s2 = s * s
    # log(1 + m) = 2 artanh(s), and m - 2 s = m s.
    near = s * (m - 2 * s2 * (1 / 3 + s2 * (1 / 5 + s2 * (1 / 7 + s2 * (1 / 9)))))
    far = m - mx.log(z / a)
    return mx.where(mx.abs(m) < 0.3, near, far)


def _log_prefactor(a: mx.array, z: mx.array) -> mx.array:
    """log(z^a e^-z / Gamma(a + 1))."""
    return (
        -a * _half_eta_squared(a, z)
        - 0.5 * mx.log(a)
        - HALF_LOG_TWO_PI
        - _stirling_error(a)
    )


@mx.compile
def _log_regularized_gamma(a: mx.array, z: mx.array) -> mx.array:
    """log P(a, z), the regularised lower incomplete gamma function."""
    a = mx.clip(a, 1e-30, FLOAT32_MAX)
    # P rounds to 1 well before 4 a + 100; the bound keeps the recurrence finite.
    z = mx.minimum(z, mx.minimum(4 * a + 100, FLOAT32_MAX))
    b = a + SHIFT
    m = (z - b) / b
    half_eta2 = _half_eta_squared(b, z)
    eta = mx.sqrt(2 * half_eta2)
    eta = mx.where(m < 0, -eta, eta)
    near = mx.abs(eta) < 0.6
    safe_eta = mx.where(near, 1, eta)
    safe_m = mx.where(near, 1, m)
    u, v = 1 / safe_eta, 1 / safe_m
    c0 = mx.where(near, polynomial(TEMME_C0, eta), v - u)
    c1 = mx.where(
        near, polynomial(TEMME_C1, eta), u * u * u - ((v + 1) * v + 1 / 12) * v
    )
    c2 = mx.where(
        near,
        polynomial(TEMME_C2, eta),
        ((((3 * v + 5) * v + 25 / 12) * v + 1 / 12) * v + 1 / 288) * v
        - 3 * u * u * u * u * u,
    )
    correction = c0 + (c1 + c2 / b) / b
    t = 1 / (1 + 0.5 * mx.sqrt(b) * mx.sqrt(half_eta2))
    erfcx = t * polynomial(ERFCX, t)
    half_sqrt = (0.5 * SQRT_TWO_PI) * mx.sqrt(b)
    below = m < 0
    # P(b, z) below the mean and 1 - P(b, z) above it, in units of the prefactor at b.
    tail = mx.exp(_stirling_series(b)) * (
        half_sqrt * erfcx + mx.where(below, -correction, correction)
    )
    terms = mx.where(below, tail, 0)
    for j in range(SHIFT, 0, -1):
        terms = 1 + z / (a + j) * terms
    log_lower = _log_prefactor(a, z) + mx.log(terms)
    log_upper_tail = (
        mx.log(tail)
        - b * half_eta2
        - 0.5 * mx.log(b)
        - HALF_LOG_TWO_PI
        - _stirling_series(b)
    )
    complement = mx.exp(log_upper_tail) - mx.exp(log_lower)
    above = mx.log1p(-mx.clip(complement, 0, 1 - 2**-24))
    return mx.where(below, mx.minimum(log_lower, 0), above)
