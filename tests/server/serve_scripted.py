"""Serves the demo with a script in place of its model.

The reply thinks four tokens, is closed by whatever budget comes, and calls a tool; a
looping one says the same line for ever.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from mlx_budget.server import provider, running, service
from scripted import ScriptedBatch
from served import Address

# What makes mlx-lm read tool calls of the JSON kind.
TEMPLATE = (
    "{%- for message in messages %}{{- message.role + ': ' + message.content + '\\n' }}"
    "{%- endfor %}{%- for tool in tools or [] %}{{- tool.function.name }}{% endfor %}"
    "{%- if false %}<tool_call>{{ tool_call.name }}{% endif %}"
    "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"
)
QUESTION = "Add 2 and 3."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
        },
    }
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
LINE = "Wait, let me check that again.\n"


class Provider(provider.BudgetModelProvider):
    """Loads the demo, and lets a script speak for it."""

    def _load(self, *names) -> None:
        super()._load(*names)
        tokenizer = self.tokenizer
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}],
            tools=TOOLS,
            add_generation_prompt=True,
        )
        script = self.script(tokenizer)
        self.model = ScriptedBatch(script, len(prompt), self.vocabulary_size)

    def script(self, tokenizer) -> list[int]:
        encode = tokenizer.encode
        # A forced closing marker takes the place of one token of the script.
        tokens = [*encode("I think so\n")[-4:], 0, *encode(f"\n{CALL}")]
        return tokens + list(tokenizer.eos_token_ids)[:1]


class LoopingProvider(Provider):
    """Lets it say the same line for ever."""

    def script(self, tokenizer) -> list[int]:
        return tokenizer.encode(LINE) * 60


@contextmanager
def running_scripted(kind: type[Provider] = Provider) -> Iterator[Address]:
    """A server with a script for its model, in this process."""
    with ExitStack() as stack:
        # Servers that start while this one runs have the demo again.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(service, "BudgetModelProvider", kind)
            options = {"predictor": False, "chat_template": TEMPLATE}
            url = stack.enter_context(running(**options))
        yield Address(url)
