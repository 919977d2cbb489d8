"""The predictor inside a Budget Guidance checkpoint, out of its shards.

Knows the reference's tensors and where they are; nothing of the language model's.
"""

import mlx.core as mx

from ..files.tensors import named_tensors, read_tensors
from ..method.encoder_predictor import EncoderPredictor, check_tensors
from ..method.predictor_config import PredictorConfig
from .lookup import Found
from .reference import (
    is_predictor_tensor,
    predictor_name,
    predictor_sizes,
    reference_name,
)

Shapes = dict[str, tuple[int, ...]]


def check_reference(found: Found) -> None:
    """Checks, without a download, that a checkpoint holds a predictor.

    Raises:
        ValueError: If it does not.
    """
    if found.has_predictor and not found.predictor_files:
        raise ValueError(
            f"{found.name} has been converted already: give it to `mlx-budget "
            "generate`."
        )
    if not found.predictor_files:
        raise ValueError(
            f"{found.name} has no predictor tensors, so it is no Budget Guidance "
            "checkpoint. Convert a plain model with `mlx_lm.convert`, and give its "
            "predictor to `mlx-budget generate --predictor`."
        )


def plan_predictor(
    found: Found, made_for: str, model_layers: int, heads: int | None
) -> tuple[EncoderPredictor, Shapes]:
    """A predictor without its weights, and the shapes that the checkpoint has.

    Nothing is downloaded but the headers of the shards.

    Args:
        found (Found): The checkpoint.
        made_for (str): Name of the language model.
        model_layers (int): N.
        heads (int, optional): Attention heads; by default one for every 64 of P.

    Raises:
        ValueError: Naming the tensor that is missing, too many, or of a wrong shape.
    """
    infos = {
        tensor: info
        for file in found.predictor_files
        for tensor, info in found.header(file).items()
        if is_predictor_tensor(tensor)
    }
    for tensor, info in infos.items():
        if info.dtype not in ("F32", "F16", "BF16"):
            raise ValueError(
                f"{found.name}: predictor tensor {tensor} is of type {info.dtype}. Use "
                "a checkpoint in float32, float16 or bfloat16."
            )
    shapes = {tensor: info.shape for tensor, info in infos.items()}
    sizes = predictor_sizes(shapes, heads)
    predictor = EncoderPredictor(
        PredictorConfig(base_model=made_for, model_layers=model_layers, **sizes)
    )
    ours = named_tensors(predictor.parameters())
    expected = {reference_name(k): v.shape for k, v in ours.items()}
    expected["cls_token"] = (1, 1, predictor.config.model_width)
    try:
        check_tensors(shapes, expected, found.name)
    except ValueError as e:
        raise ValueError(
            f"{e} The checkpoint is damaged: get it anew from its author."
        ) from None
    return predictor, shapes


def fill_predictor(
    predictor: EncoderPredictor, found: Found, dtype: str | None = None
) -> None:
    """Gives a predictor its weights, read when they are used, from shards on disk.

    Args:
        predictor (EncoderPredictor): From `plan_predictor`.
        found (Found): The checkpoint.
        dtype (str, optional): As of `convert`.
    """
    weights = {}
    for file in found.predictor_files:
        found.header(file)  # says what is wrong with one that is cut short
        for tensor, value in read_tensors(found.folder / file).items():
            if is_predictor_tensor(tensor):
                value = value.reshape(-1) if tensor == "cls_token" else value
                weights[predictor_name(tensor)] = cast(value, dtype)
    predictor.load_weights(list(weights.items()))


def cast(value: mx.array, dtype: str | None) -> mx.array:
    """A floating-point array in a type, which stays as it is for None."""
    floating = mx.issubdtype(value.dtype, mx.floating)
    return value.astype(getattr(mx, dtype)) if dtype and floating else value
