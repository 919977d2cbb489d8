"""Serves the demo with a script in place of its model: run with python.

The reply thinks four tokens, is closed by whatever budget comes, and calls a tool; with
--looping it says the same line for ever.
"""

import sys

from mlx_budget.cli import cli
from mlx_budget.server import provider
from scripted import ScriptedBatch

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
IS_LOOPING = "--looping" in sys.argv


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
        encode = tokenizer.encode
        # A forced closing marker takes the place of one token of the script.
        script = [*encode("I think so\n")[-4:], 0, *encode(f"\n{CALL}")]
        script += list(tokenizer.eos_token_ids)[:1]
        if IS_LOOPING:
            script = encode(LINE) * 60
        self.model = ScriptedBatch(script, len(prompt), self.vocabulary_size)


if __name__ == "__main__":
    provider.BudgetModelProvider = Provider
    import mlx_budget.server.service

    mlx_budget.server.service.BudgetModelProvider = Provider
    sys.argv[1:] = [option for option in sys.argv[1:] if option != "--looping"]
    sys.argv[1:1] = ["serve", "--predictor", "none", "--chat-template", TEMPLATE]
    cli()
