"""The README.md of a converted folder, as the Hugging Face Hub shows it.

Knows what a converted folder is for; nothing of weights.
"""

from pathlib import Path
from typing import Any

from ..files.texts import write_text
from ..installing import install_command
from ..method.predictor_config import PredictorConfig
from .base_model import Config

_CARD = """---
library_name: mlx
pipeline_tag: text-generation
tags:
- mlx
- budget-guidance
{base_line}---

# {title}

{what}

Budget Guidance steers a reasoning model's thinking to a token budget: a small predictor
reads the model's hidden states and favours the next tokens whose remaining thinking
would fit ([arXiv 2506.13752](https://arxiv.org/abs/2506.13752)).

## Use

```bash
{install}
{command}
```
"""
_SETTINGS = """
## Settings

| | |
|---|---|
| language model | {model_layers} layers, width {model_width} |
| vocabulary | {vocab_size:,} tokens |
| language model weights | {base_weights} |
| predictor | {layers} layers, width {width}, {heads} heads |
| predictor weights | {predictor_weights} |
"""
_LIGHT = """
## Settings

Kind of predictor: {kind} (`mlx-budget train --size {kind}`).
"""
_WHOLE = (
    "{base} with its thinking-length predictor, "
    "converted to MLX by mlx-budget. The folder is an ordinary mlx-lm model too."
)
_ALONE = (
    "The thinking-length predictor of {base}, "
    "converted to MLX by mlx-budget, for any build of its base model."
)


_TRAINED = (
    "A thinking-length predictor for {base}, trained on its own reasoning with "
    "mlx-budget, for any build of that model."
)
_QUALITY = """
## Training

| | |
|---|---|
| records | {records:,}, of which {held_out_records:,} held out |
| positions trained on | {training_positions:,} |
| tokens that guidance may favour | {known_tokens:,} |
| loss on held-out positions | {val_loss:.3f} nats |
| loss of the best single Gamma distribution there | {marginal_loss:.3f} nats |

{verdict}

`report.json` and `report.png` have more.
"""


def write_model_card(
    folder: Path,
    name: str,
    predictor: PredictorConfig,
    config: Config,
    predictor_only: bool,
) -> None:
    """Writes README.md into a converted folder.

    Args:
        folder (Path): The folder.
        name (str): What it will be called, here or on the Hub.
        predictor (PredictorConfig): The predictor in it.
        config (dict): The language model's config.
        predictor_only (bool): Whether the folder holds the predictor alone.
    """
    what = _ALONE if predictor_only else _WHOLE
    options = f"--model {name}"
    if predictor_only:
        options = f"--model BASE_MODEL --predictor {name}"
    base_weights = "not in this folder" if predictor_only else _weights(config)
    text = _render(name, what, options, predictor, base_weights)
    write_text(folder / "README.md", text)


def write_trained_card(
    folder: Path, predictor: PredictorConfig, report: dict[str, Any]
) -> None:
    """Writes README.md into the folder of a predictor of our own training.

    Args:
        folder (Path): The folder.
        predictor (PredictorConfig): The predictor in it.
        report (dict): What `report.json` in it holds.
    """
    options = f"--model {predictor.base_model} --predictor {folder.name}"
    text = _render(folder.name, _TRAINED, options, predictor, "not in this folder")
    write_text(folder / "README.md", text + _QUALITY.format(**report))


def write_light_card(
    folder: Path, kind: str, base: str, report: dict[str, Any]
) -> None:
    """Writes README.md into the folder of a table or a linear predictor.

    Args:
        folder (Path): The folder.
        kind (str): "table" or "linear".
        base (str): Name of the language model.
        report (dict): What `report.json` in the folder holds.
    """
    options = f"--model {base} --predictor {folder.name}"
    text = _frame(folder.name, _TRAINED, options, base) + _LIGHT.format(kind=kind)
    write_text(folder / "README.md", text + _QUALITY.format(**report))


def _frame(name: str, what: str, options: str, base: str) -> str:
    return _CARD.format(
        base_line=f"base_model: {base}\n" if "/" in base else "",
        title=name.split("/")[-1],
        install=install_command(),
        what=what.format(base=base),
        command=(
            f"mlx-budget generate {options} \\\n"
            '    --thinking-budget 1000 --prompt "How many primes are below 100?"'
        ),
    )


def _render(
    name: str, what: str, options: str, predictor: PredictorConfig, base_weights: str
) -> str:
    return _frame(name, what, options, predictor.base_model) + _SETTINGS.format(
        base_weights=base_weights,
        predictor_weights=_weights({"quantization": predictor.quantization}),
        **{
            key: getattr(predictor, key)
            for key in (
                "model_layers",
                "model_width",
                "vocab_size",
                "layers",
                "width",
                "heads",
            )
        },
    )


def _weights(config: Config) -> str:
    quantization = config.get("quantization")
    if not quantization:
        return config.get("dtype") or config.get("torch_dtype") or "not quantised"
    return f"{quantization['bits']} bits, groups of {quantization['group_size']}"
