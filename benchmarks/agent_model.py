"""A stand-in for a model that an agent drives: it calls a tool once, and then answers.

It reads its conversation only so far: whether the last message is a tool's. Run as a
script it is served, with the options of `mlx-budget serve` and `--call`.
"""

import json
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_budget.cli import cli
from mlx_budget.server import provider, service

TEMPLATE = (
    "{%- for tool in tools or [] %}{{- tool | tojson }}{% endfor %}"
    "{%- for message in messages %}{{- message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}{{- call.function | tojson }}"
    "{%- endfor %}{{- '\\n' }}{%- endfor %}"
    # What makes mlx-lm read tool calls of the JSON kind.
    "{%- if false %}<tool_call>{{ tool_call.name }}{% endif %}"
    "{%- if add_generation_prompt %}"
    "{{- ('B' if messages[-1].role == 'tool' else 'A') + '<think>\\n' }}{%- endif %}"
)
ANSWER = "The file holds 12, as it should."


class _Layer(nn.Module):
    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        """The tokens so far: (B, S) become (B, T). The cache holds nothing else."""
        tokens = tokens[:, None, :, None].astype(mx.float32)
        return cache.update_and_fetch(tokens, tokens)[0][:, 0, :, 0]


class AgentModel(nn.Module):
    """Says one of two things behind the last opening marker, by what stands before it.

    Args:
        scripts (list[list[int]]): Tokens to call the tool with, and to answer.
        opening (int): Token of the opening marker.
        answers (int): Token before it where the tool has been called.
        vocabulary_size (int): Of the tokenizer.
    """

    def __init__(
        self,
        scripts: list[list[int]],
        opening: int,
        answers: int,
        vocabulary_size: int,
    ):
        super().__init__()
        self.layers = [_Layer()]
        self._scripts = scripts
        self._opening = opening
        self._answers = answers
        self._vocabulary_size = vocabulary_size

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        rows = self.layers[0](inputs, cache[0]).astype(mx.int32).tolist()
        wishes = mx.array([self._wish(row) for row in rows])[:, None, None]
        wanted = mx.where(wishes == mx.arange(self._vocabulary_size), 10.0, 0.0)
        return mx.broadcast_to(wanted, (*inputs.shape, self._vocabulary_size))

    def _wish(self, tokens: list[int]) -> int:
        """The next token. The opening marker and a newline end the prompt."""
        if self._opening not in tokens:
            return 0  # in the middle of a prompt
        place = len(tokens) - 1 - tokens[::-1].index(self._opening)
        script = self._scripts[tokens[place - 1] == self._answers]
        step = len(tokens) - place - 2
        return script[step] if 0 <= step < len(script) else script[-1]


class Provider(provider.BudgetModelProvider):
    """Loads the built-in model, and puts the stand-in in its place."""

    call: dict[str, Any] = {}

    def _load(self, *names: Any) -> None:
        super()._load(*names)
        encode = self.tokenizer.encode
        call = f"<tool_call>\n{json.dumps(self.call)}\n</tool_call>"
        (opening,), (closing,) = encode("<think>"), encode("</think>")
        (end,) = list(self.tokenizer.eos_token_ids)[:1]
        scripts = [
            [*encode(f"{thought}\n"), closing, *encode(f"\n\n{said}"), end]
            for thought, said in (("I call it", call), ("It is done", ANSWER))
        ]
        self.model = AgentModel(scripts, opening, encode("B")[-1], self.vocabulary_size)


if __name__ == "__main__":
    at = sys.argv.index("--call")
    Provider.call = json.loads(sys.argv[at + 1])
    del sys.argv[at : at + 2]
    service.BudgetModelProvider = Provider  # type: ignore[misc]
    sys.argv[1:1] = ["serve", "--predictor", "none", "--chat-template", TEMPLATE]
    cli()
