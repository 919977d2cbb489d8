"""The predictor's encoder: a BERT layer that computes only what is read of it.

B is the batch, S the sequence (N + 2 positions), P the predictor width.
"""

import functools

import mlx.core as mx
import mlx.nn as nn

from .gamma import polynomial

# erf(z) = z P(z^2) / Q(z^2) for |z| below the end, 1 to float32 beyond it: a minimax
# fit, weighted by iteration, of the values that SciPy gives.
_ERF_END = 3.92
_ERF_UPPER = (
    1.12837902,
    0.192762352,
    0.0530602727,
    0.00386825998,
    0.000287478764,
    2.03475841e-06,
)
_ERF_LOWER = (
    1.0,
    0.504162854,
    0.11508393,
    0.0151721591,
    0.00118810056,
    3.80708551e-05,
)


class EncoderLayer(nn.Module):
    """A BERT encoder layer, shape (B, S, P) in.

    Args:
        width (int): P.
        heads (int): Number of attention heads.
        intermediate (int): Width of the feed-forward layer.
        eps (float): Epsilon of the LayerNorms.
        norm (str): "post" for LayerNorms behind the sums of the residual stream, as
            BERT has them, or "pre" for LayerNorms before attention and feed-forward
            layer (Xiong et al., arXiv 2002.04745), which leave the stream as it is.
    """

    def __init__(
        self, width: int, heads: int, intermediate: int, eps: float, norm: str = "post"
    ):
        super().__init__()
        p = width
        self.heads = heads
        self._is_pre = norm == "pre"
        self.query = nn.Linear(p, p)
        self.key = nn.Linear(p, p)
        self.value = nn.Linear(p, p)
        self.attention_output = nn.Linear(p, p)
        self.attention_norm = nn.LayerNorm(p, eps=eps)
        self.up = nn.Linear(p, intermediate)
        self.down = nn.Linear(intermediate, p)
        self.output_norm = nn.LayerNorm(p, eps=eps)

    def __call__(self, x: mx.array, outputs: int | None = None) -> mx.array:
        """The layer's output at the first ``outputs`` positions, by default at all."""
        b, _, p = x.shape
        head_width = p // self.heads

        def split(y: mx.array) -> mx.array:
            return y.reshape(b, -1, self.heads, head_width).swapaxes(1, 2)

        wanted = x[:, :outputs]
        y = self.attention_norm(x) if self._is_pre else x
        attended = mx.fast.scaled_dot_product_attention(
            split(self.query(y[:, :outputs])),
            split(self.key(y)),
            split(self.value(y)),
            scale=head_width**-0.5,
        )  # (B, heads, S, P / heads)
        attended = attended.swapaxes(1, 2).reshape(b, -1, p)
        x = wanted + self.attention_output(attended)
        if self._is_pre:
            return x + self.down(gelu(self.up(self.output_norm(x))))
        x = self.attention_norm(x)
        return self.output_norm(x + self.down(gelu(self.up(x))))


@functools.partial(mx.compile, shapeless=True)
def gelu(x: mx.array) -> mx.array:
    """GELU in its exact form, x * Phi(x), elementwise.

    Uses a rational erf, right to 2e-8 in exact arithmetic: MLX's takes a third of the
    encoder's time on the CPU.
    """
    y = x.astype(mx.float32)
    z = mx.clip(y * 2**-0.5, -_ERF_END, _ERF_END)
    z2 = z * z
    erf = z * (polynomial(_ERF_UPPER, z2) / polynomial(_ERF_LOWER, z2))
    y = 0.5 * y * (1 + erf)
    return y.astype(x.dtype)
