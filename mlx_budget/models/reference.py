"""The predictor tensors of a Budget Guidance reference checkpoint, and our names.

A pure map of names and shapes; knows nothing of files, models or mlx.
"""

import re
from collections import Counter
from typing import TypedDict

# The tensors that the reference adds to a causal language model (arXiv 2506.13752).
_PREFIXES = ("cls_token", "encoder.", "alpha_head.", "lam_head.")
_NAMES = {
    "cls_token": "cls",
    "encoder.0.weight": "projection.weight",
    "encoder.0.bias": "projection.bias",
    "alpha_head.weight": "concentration_head.weight",
    "lam_head.weight": "rate_head.weight",
}
_LAYER = re.compile(r"encoder\.1\.layer\.([0-9]+)\.(.+)\.(weight|bias)")
_LAYER_MODULES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "output_norm",
}


class PredictorSizes(TypedDict):
    """The sizes of a predictor that its tensors tell."""

    model_width: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    intermediate: int


def is_predictor_tensor(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to the predictor, by its name."""
    return name.startswith(_PREFIXES)


def predictor_name(name: str) -> str:
    """Our name for a predictor tensor of the reference, or ``name`` if it has none."""
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER.fullmatch(name)
    if match and match[2] in _LAYER_MODULES:
        return f"layers.{match[1]}.{_LAYER_MODULES[match[2]]}.{match[3]}"
    return name


def reference_name(name: str) -> str:
    """The reference's name for one of our predictor tensors."""
    for theirs, ours in _NAMES.items():
        if name == ours:
            return theirs
    _, layer, module, parameter = name.split(".")
    theirs = next(k for k, v in _LAYER_MODULES.items() if v == module)
    return f"encoder.1.layer.{layer}.{theirs}.{parameter}"


def predictor_sizes(
    shapes: dict[str, tuple[int, ...]], heads: int | None = None
) -> PredictorSizes:
    """The sizes of a predictor, read off the shapes of the reference's tensors.

    Args:
        shapes (dict): Shapes of the predictor tensors by the reference's names.
        heads (int, optional): Attention heads of the encoder. They cannot be read off
            the shapes; by default each is 64 wide, as in BERT.

    Returns:
        PredictorSizes: What `PredictorConfig` takes, but for the model's layers.

    Raises:
        ValueError: If a tensor that tells a size is missing, of a wrong rank or empty,
            or the number of heads has to be given.
    """

    def size(name: str, axis: int, rank: int) -> int:
        if name not in shapes:
            raise ValueError(f"The checkpoint lacks the predictor tensor {name}.")
        if len(shapes[name]) != rank or 0 in shapes[name]:
            raise ValueError(
                f"Predictor tensor {name} has shape {shapes[name]}, expected {rank} "
                "dimensions, none of them 0."
            )
        return shapes[name][axis]

    width = size("encoder.0.weight", 0, 2)
    tensors = Counter(m[1] for name in shapes if (m := _LAYER.fullmatch(name)))
    # Half of a layer's weights and biases make a layer; a stray tensor does not.
    layers = sum(count >= len(_LAYER_MODULES) for count in tensors.values())
    if heads is None:
        if width % 64:
            raise ValueError(
                f"The predictor is {width} wide, which is no multiple of BERT's 64 per "
                "head: give its number of attention heads with --predictor-heads."
            )
        heads = width // 64
    return {
        "model_width": size("cls_token", 2, 3),
        "vocab_size": size("alpha_head.weight", 0, 2),
        "width": width,
        "layers": max(layers, 1),
        "heads": heads,
        "intermediate": size("encoder.1.layer.0.intermediate.dense.weight", 0, 2),
    }
