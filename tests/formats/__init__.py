"""The formats in which reasoning models think, each shortened to what matters.

docs/formats.md tells where the facts come from and what is not in them. Knows text and
tokenizer files; nothing of the engine.
"""

from .base import ANSWER, THOUGHT, Format
from .chatml import LFM25, M1, NEMOTRON3, OLMO3, QWEN3, QWEN35
from .glm_deepseek import GLM5, GLM45, R1, R1_OLD, V4, V31
from .others import (
    GEMMA4,
    GPT_OSS,
    HUNYUAN,
    HY3,
    KIMI_K2,
    KIMI_K3,
    KIMI_K25,
    MAGISTRAL,
    SEED_OSS,
)

__all__ = ["ANSWER", "FORMATS", "THOUGHT", "Format"]

FORMATS = (
    QWEN3,
    QWEN35,
    GLM45,
    GLM5,
    R1_OLD,
    R1,
    V31,
    V4,
    MAGISTRAL,
    GPT_OSS,
    GEMMA4,
    SEED_OSS,
    NEMOTRON3,
    LFM25,
    KIMI_K2,
    KIMI_K25,
    KIMI_K3,
    HUNYUAN,
    HY3,
    OLMO3,
    M1,
)
