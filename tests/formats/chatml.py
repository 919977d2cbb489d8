"""Formats on ChatML's turns: Qwen, Nemotron 3, LFM2.5, Olmo 3."""

from .base import Format, qwen3, qwen36

_CHATML = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}HISTORY{% else %}{{- m.content }}{% endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}REPLY{% endif %}"""


def _chatml(history: str, reply: str = "") -> str:
    return _CHATML.replace("HISTORY", history).replace("REPLY", reply)


# Thinking before the last question is left out.
_ANSWER_ALONE = (
    "{%- set thinking = m.reasoning_content %}{{- m.content.split('</think>')[-1] }}"
)
_CALL_TOKENS = ("<tool_call>", "</tool_call>")
_JSON_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
_CODER_CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n</function>\n"
    "</tool_call>"
)

QWEN3 = Format(
    name="Qwen3",
    tail="<|im_end|>\n<|im_start|>assistant\n",
    says="<think>\n~\n</think>\n\n@",
    tokens=12,  # a newline, ten of the thought and its full stop with a newline
    at_4="<think>\nI add the«\n</think>\n\n»@",
    at_0="<think>«\n\n</think>\n\n»@",
    past="<|im_start|>assistant\n@<|im_end|>\n",
    template=_chatml(
        _ANSWER_ALONE,
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\n\n</think>\n\n' }}{% endif %}",
    ),
    vocabulary=qwen3,
    added=("<think>", "</think>", *_CALL_TOKENS),
    special=("<|endoftext|>", "<|im_start|>"),
    off={"enable_thinking": False},
    off_tail="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    call=_JSON_CALL,
    config={"tool_parser_type": "json_tools"},
)
QWEN35 = Format(
    name="Qwen3.5 and 3.6",
    tail="<|im_end|>\n<|im_start|>assistant\n<think>\n",
    says="~\n</think>\n\n@",
    tokens=12,  # no entry holds a full stop and a newline
    at_4="I add the two«\n</think>\n\n»@",
    at_0="«\n</think>\n\n»@",
    past="<|im_start|>assistant\n@<|im_end|>\n",
    template=_chatml(
        _ANSWER_ALONE,
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\n\n</think>\n\n' }}{% else %}{{- '<think>\n' }}{% endif %}",
    ),
    vocabulary=qwen36,
    added=("<think>", "</think>", *_CALL_TOKENS),
    special=("<|endoftext|>", "<|im_start|>"),
    off={"enable_thinking": False},
    off_tail="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    call=_CODER_CALL,
    config={"tool_parser_type": "qwen3_coder"},
)
NEMOTRON3 = Format(
    name="Nemotron 3",
    tail="<|im_end|>\n<|im_start|>assistant\n<think>\n",
    says="~\n</think>\n@",
    tokens=12,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<|im_start|>assistant\n<think></think>@<|im_end|>\n",
    template=_chatml(
        "{%- set thinking = m.reasoning_content %}{{- '<think></think>' + m.content }}",
        "{%- if enable_thinking is defined and not enable_thinking %}"
        "{{- '<think></think>' }}{% else %}{{- '<think>\n' }}{% endif %}",
    ),
    added=("<think>", "</think>", *_CALL_TOKENS),
    special=("<|im_start|>",),
    off={"enable_thinking": False},
    off_tail="<|im_end|>\n<|im_start|>assistant\n<think></think>",
    call=_CODER_CALL,
    config={"tool_parser_type": "qwen3_coder"},
)
LFM25 = Format(
    name="LFM2.5",
    tail="<|im_end|>\n<|im_start|>assistant\n",
    says="<think>~</think>@",
    tokens=11,
    at_4="<think>I add the two«</think>»@",
    at_0="<think>«</think>»@",
    past="<|im_start|>assistant\n@<|im_end|>\n",
    template=_chatml(
        "{%- if preserve_thinking %}{{- '<think>' + m.thinking + '</think>' }}"
        "{% endif %}{{- m.content }}"
    ),
    added=("<think>", "</think>", "<|tool_call_start|>", "<|tool_call_end|>"),
    special=("<|im_start|>",),
    call="<|tool_call_start|>[add(a=2)]<|tool_call_end|>",
    config={"tool_parser_type": "pythonic"},
)
OLMO3 = Format(
    name="Olmo 3",
    tail="<|im_end|>\n<|im_start|>assistant\n<think>",
    says="~</think>@",
    tokens=11,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<|im_start|>assistant\n<think>~</think>@<|im_end|>\n",
    past_at_4="<|im_start|>assistant\n<think>I add the two</think>@<|im_end|>\n",
    template=_chatml("{{- m.content }}", "{{- '<think>' }}"),
    added=(),
    special=("<|im_start|>",),
    is_named=True,
)
# Its template is Qwen2.5's, which says nothing of thinking.
M1 = Format(
    name="m1",
    tail="<|im_end|>\n<|im_start|>assistant\n",
    says="<|im_start|>think\n~\n<|im_start|>answer\n@",
    tokens=13,
    at_4="<|im_start|>think\nI add the«<|im_start|>answer»@",
    at_0="<|im_start|>think«<|im_start|>answer»@",
    past="<|im_start|>assistant\n<|im_start|>think\n~\n<|im_start|>answer\n@<|im_end|>\n",
    past_at_4="<|im_start|>assistant\n<|im_start|>think\nI add the<|im_start|>answer@"
    "<|im_end|>\n",
    template=_chatml("{{- m.content }}"),
    added=(),
    special=("<|im_start|>",),
    start="<|im_start|>think",
    end="<|im_start|>answer",
    is_named=True,
)
