"""The fused guided-weight kernel: head outputs of the candidates to log-weights.

One C-like body serves Metal and CUDA; where there is neither, plain MLX operations give
the same numbers. It repeats the formulas of `gamma`, with its fitted coefficients, for
one candidate: softplus, trust thresholds and the log of the Gamma CDF, or of two where
the window has a floor, in one pass over memory. Knows nothing of heads, models or
tokens. B is the batch, K the number of candidates.
"""

import functools
import hashlib
import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from . import gamma, guidance
from .guidance import GuidanceThresholds, Tokens, Window

INPUTS = (
    "concentration_output",
    "rate_output",
    "log_most",
    "log_below",
    "settings",
    "sizes",
)
OUTPUT = "log_weight"

_METAL_DIALECT = """
#define BUDGET_FN inline
#define BUDGET_INFINITY INFINITY
#define BUDGET_EXP metal::precise::exp
#define BUDGET_LOG metal::precise::log
#define BUDGET_SQRT metal::precise::sqrt
#define BUDGET_ABS metal::abs
#define BUDGET_MIN metal::min
#define BUDGET_MAX metal::max
"""
_METAL_INDEX = "const unsigned int index = thread_position_in_grid.x;\n"

_CUDA_DIALECT = """
#define BUDGET_FN __device__ inline
#define BUDGET_INFINITY __int_as_float(0x7f800000)
#define BUDGET_EXP expf
#define BUDGET_LOG logf
#define BUDGET_SQRT sqrtf
#define BUDGET_ABS fabsf
#define BUDGET_MIN fminf
#define BUDGET_MAX fmaxf
"""
_CUDA_INDEX = (
    "const unsigned int index = cooperative_groups::this_grid().thread_rank();\n"
)


def _horner(coefficients: tuple[float, ...], variable: str) -> str:
    *lower, expression = (f"{c!r}f" for c in coefficients)
    for c in reversed(lower):
        expression = f"({expression} * {variable} + {c})"
    return expression


FUNCTIONS = f"""
BUDGET_FN float budget_log1p(float x) {{
  const float u = 1.0f + x;
  return u == 1.0f ? x : BUDGET_LOG(u) * (x / (u - 1.0f));
}}

// log(1 - exp(d)) for d < 0.
BUDGET_FN float budget_log_1m_exp(float d) {{
  const float u = BUDGET_EXP(d);
  if (d < -0.5f) return budget_log1p(-u);
  return BUDGET_LOG(u == 1.0f ? -d : (1.0f - u) * (d / BUDGET_LOG(u)));
}}

BUDGET_FN float budget_softplus(float x) {{
  return BUDGET_MAX(x, 0.0f) + budget_log1p(BUDGET_EXP(-BUDGET_ABS(x)));
}}

// See the functions of the same names in gamma.py.
BUDGET_FN float budget_stirling_series(float a) {{
  const float r = 1.0f / a;
  const float r2 = r * r;
  return r * (1.0f / 12.0f - r2 * (1.0f / 360.0f - r2 / 1260.0f));
}}

BUDGET_FN float budget_stirling_error(float a) {{
  if (a >= {gamma.SHIFT}.0f) return budget_stirling_series(a);
  const float shifted = a + {gamma.SHIFT}.0f;
  float product = a + 1.0f;
  for (int j = 2; j <= {gamma.SHIFT}; ++j) product *= a + float(j);
  return budget_stirling_series(shifted)
      + (a + 0.5f) * BUDGET_LOG(shifted / a)
      + {gamma.SHIFT}.0f * (BUDGET_LOG(shifted) - 1.0f)
      - BUDGET_LOG(product);
}}

BUDGET_FN float budget_half_eta_squared(float a, float z) {{
  const float m = (z - a) / a;
  if (BUDGET_ABS(m) >= 0.3f) return m - BUDGET_LOG(z / a);
  const float s = m / (2.0f + m);
  const float s2 = s * s;
  const float series = {_horner((1 / 3, 1 / 5, 1 / 7, 1 / 9), "s2")};
  return s * (m - 2.0f * s2 * series);
}}

BUDGET_FN float budget_log_regularized_gamma(float a, float z) {{
  a = BUDGET_MIN(BUDGET_MAX(a, 1e-30f), {gamma.FLOAT32_MAX!r}f);
  z = BUDGET_MIN(z, BUDGET_MIN(4.0f * a + 100.0f, {gamma.FLOAT32_MAX!r}f));
  const float b = a + {gamma.SHIFT}.0f;
  const float m = (z - b) / b;
  const float half_eta2 = budget_half_eta_squared(b, z);
  const float eta = m < 0.0f ? -BUDGET_SQRT(2.0f * half_eta2)
                             : BUDGET_SQRT(2.0f * half_eta2);
  float c0, c1, c2;
  if (BUDGET_ABS(eta) < 0.6f) {{
    c0 = {_horner(gamma.TEMME_C0, "eta")};
    c1 = {_horner(gamma.TEMME_C1, "eta")};
    c2 = {_horner(gamma.TEMME_C2, "eta")};
  }} else {{
    const float u = 1.0f / eta;
    const float v = 1.0f / m;
    const float u3 = u * u * u;
    c0 = v - u;
    c1 = u3 - ((v + 1.0f) * v + 1.0f / 12.0f) * v;
    c2 = {_horner((1 / 288, 1 / 12, 25 / 12, 5.0, 3.0), "v")} * v - 3.0f * u3 * u * u;
  }}
  const float correction = c0 + (c1 + c2 / b) / b;
  const float t = 1.0f / (1.0f + 0.5f * BUDGET_SQRT(b) * BUDGET_SQRT(half_eta2));
  const float erfcx = t * {_horner(gamma.ERFCX, "t")};
  const float series = budget_stirling_series(b);
  const float tail = BUDGET_EXP(series)
      * ({gamma.SQRT_TWO_PI / 2!r}f * BUDGET_SQRT(b) * erfcx
         + (m < 0.0f ? -correction : correction));
  float terms = m < 0.0f ? tail : 0.0f;
  for (int j = {gamma.SHIFT}; j >= 1; --j) terms = 1.0f + z / (a + float(j)) * terms;
  const float log_lower = -a * budget_half_eta_squared(a, z) - 0.5f * BUDGET_LOG(a)
      - {gamma.HALF_LOG_TWO_PI!r}f - budget_stirling_error(a) + BUDGET_LOG(terms);
  if (m < 0.0f) return BUDGET_MIN(log_lower, 0.0f);
  const float log_upper_tail = BUDGET_LOG(tail) - b * half_eta2
      - 0.5f * BUDGET_LOG(b) - {gamma.HALF_LOG_TWO_PI!r}f - series;
  const float complement = BUDGET_EXP(log_upper_tail) - BUDGET_EXP(log_lower);
  const float largest = {1 - 2**-24!r}f;
  return budget_log1p(-BUDGET_MIN(BUDGET_MAX(complement, 0.0f), largest));
}}
"""

# `log_most` and `log_below` are those of `Window.log_bounds`, one for each row. `sizes`
# holds the number of candidates in all and in each row; `settings` holds min_rate,
# min_concentration, log(min_mode + 1), the smallest log-weight, LOG_OUTSIDE and
# LOG_ENDLESS.
BODY = """
if (index < sizes[0]) {
  const float concentration = budget_softplus(float(concentration_output[index]));
  const float rate = budget_softplus(float(rate_output[index]));
  float log_p = -BUDGET_INFINITY;
  if (rate >= settings[0] && concentration > settings[1]
      && BUDGET_MAX(concentration - 1.0f, 0.0f) / rate >= settings[2]) {
    const float most = log_most[index / sizes[1]];
    const float least = log_below[index / sizes[1]];
    const float at_most = most < settings[5]
        ? budget_log_regularized_gamma(concentration, rate * most) : 0.0f;
    if (at_most > settings[3]) {
      log_p = at_most;
      if (least > 0.0f) {
        const float below = budget_log_regularized_gamma(concentration, rate * least);
        const float d = below - at_most;
        const float inside = d < 0.0f ? at_most + budget_log_1m_exp(d)
                                      : -BUDGET_INFINITY;
        log_p = inside > settings[3] ? inside : at_most + settings[4];
      }
    }
  }
  log_weight[index] = log_p;
}
"""


def log_weights(
    concentration_output: mx.array,
    rate_output: mx.array,
    window: Window | Tokens,
    thresholds: GuidanceThresholds,
) -> mx.array:
    """Log-weights, in nats, of candidates straight from the predictor's head outputs.

    `guidance.log_weights` of the softplus of the two outputs, in one kernel on a GPU.

    Args:
        concentration_output (mx.array): Outputs of the concentration head before
            softplus, shape (B, K), any floating-point type.
        rate_output (mx.array): Outputs of the rate head, likewise.
        window (Window, mx.array or float): As there.
        thresholds (GuidanceThresholds): Which predictions to trust.

    Returns:
        mx.array: float32, shape (B, K); -inf where the weight is 0.
    """
    rows, columns = shape = concentration_output.shape
    kernel = _kernel(concentration_output, rate_output)
    if kernel is None:
        return plain_log_weights(concentration_output, rate_output, window, thresholds)
    bounds = guidance.as_window(window).log_bounds()
    values = kernel_settings(thresholds)
    return kernel(
        inputs=[
            concentration_output,
            rate_output,
            *(mx.broadcast_to(bound.reshape(-1), (rows,)) for bound in bounds),
            mx.array(values, dtype=mx.float32),
            mx.array([rows * columns, columns], dtype=mx.uint32),
        ],
        grid=(rows * columns, 1, 1),
        threadgroup=(min(256, rows * columns), 1, 1),
        output_shapes=[shape],
        output_dtypes=[mx.float32],
    )[0]


def plain_log_weights(
    concentration_output: mx.array,
    rate_output: mx.array,
    window: Window | Tokens,
    thresholds: GuidanceThresholds,
) -> mx.array:
    """`log_weights` in ordinary MLX operations, for any device."""
    return guidance.log_weights(
        nn.softplus(concentration_output.astype(mx.float32)),
        nn.softplus(rate_output.astype(mx.float32)),
        window,
        thresholds,
    )


def kernel_settings(thresholds: GuidanceThresholds) -> list[float]:
    """The kernel's input ``settings``."""
    return [
        thresholds.min_rate,
        thresholds.min_concentration,
        math.log1p(thresholds.min_mode),
        guidance.LOG_SMALLEST_WEIGHT,
        guidance.LOG_OUTSIDE,
        guidance.LOG_ENDLESS,
    ]


def _kernel(*outputs: mx.array) -> Callable | None:
    """The kernel for head outputs like these, or None on the CPU."""
    if mx.default_device() != mx.gpu:
        return None
    # MLX keeps a compiled kernel by its name, but writes the types of the inputs, and
    # whether they have fewer than 8 elements, into its signature.
    types = [str(o.dtype).removeprefix("mlx.core.") for o in outputs]
    sizes = ["few" if n < 8 else "many" for n in (outputs[0].size, len(outputs[0]))]
    variant = "_".join([*types, *sizes])
    if mx.metal.is_available():
        return _build(mx.fast.metal_kernel, _METAL_DIALECT, _METAL_INDEX, variant)
    return _build(mx.fast.cuda_kernel, _CUDA_DIALECT, _CUDA_INDEX, variant)


@functools.cache
def _build(make: Callable, dialect: str, index: str, variant: str) -> Callable:
    header, source = dialect + FUNCTIONS, index + BODY
    # Nor may a compiled kernel of another release be taken for this one.
    digest = hashlib.sha256((header + source).encode()).hexdigest()[:8]
    return make(
        name=f"mlx_budget_log_weights_{variant}_{digest}",
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        header=header,
        source=source,
    )
