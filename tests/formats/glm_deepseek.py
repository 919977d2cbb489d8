"""The formats of GLM and of DeepSeek."""

from .base import Format, deepseek

_GLM_CALL = (
    "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
)
_GLM_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
)
_GLM_SPECIAL = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM45 = Format(
    name="GLM-4.5 and 4.6",
    tail="<|assistant|>",
    says="\n<think>~</think>\n@",
    tokens=11,
    at_4="\n<think>I add the two«</think>»@",
    at_0="\n<think>«</think>»@",
    past="<|assistant|>\n<think></think>\n@",
    template="""\
[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>\n' + m.content }}
{{- '/nothink' if enable_thinking is defined and not enable_thinking else '' }}
{%- else %}{%- set thinking = m.reasoning_content %}
{{- '<|assistant|>\n<think></think>\n' + m.content.strip() }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}
{{- '\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}
{%- endif %}""",
    eos="<|endoftext|>",
    ends=("<|user|>", "<|observation|>"),
    added=_GLM_TOKENS,
    special=_GLM_SPECIAL,
    off={"enable_thinking": False},
    off_tail="/nothink<|assistant|>\n<think></think>",
    call=_GLM_CALL,
    config={"tool_parser_type": "glm47"},
)
GLM5 = Format(
    name="GLM-4.7 and 5",
    tail="<|assistant|><think>",
    says="~</think>@",
    tokens=11,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<|assistant|></think>@",
    template="""\
[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>' + m.content }}
{%- elif clear_thinking is defined and not clear_thinking %}
{{- '<|assistant|><think>' + m.reasoning_content + '</think>' + m.content.strip() }}
{%- else %}{{- '<|assistant|></think>' + m.content.strip() }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}
{{- '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}
{%- endif %}""",
    eos="<|endoftext|>",
    ends=("<|user|>", "<|observation|>"),
    added=_GLM_TOKENS,
    special=_GLM_SPECIAL,
    off={"enable_thinking": False},
    off_tail="<|assistant|></think>",
    call=_GLM_CALL,
    config={"tool_parser_type": "glm47"},
)
_DEEPSEEK = """\
{{- '<｜begin▁of▁sentence｜>' }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}
{%- else %}{{- 'ASSISTANT' + m.content.split('</think>')[-1] }}
{{- '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}REPLY{% endif %}"""


def _deepseek_template(reply: str, assistant: str = "<｜Assistant｜>") -> str:
    return _DEEPSEEK.replace("REPLY", reply).replace("ASSISTANT", assistant)


_DEEPSEEK_TOKENS = ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>")
R1_OLD = Format(
    name="DeepSeek R1, first template",
    tail="<｜Assistant｜>",
    says="<think>\n~\n</think>\n\n@",
    tokens=12,
    at_4="<think>\nI add the«</think>»@",
    at_0="<think>«</think>»@",
    past="<｜Assistant｜>\n\n@<｜end▁of▁sentence｜>",
    past_at_4="<｜Assistant｜>@<｜end▁of▁sentence｜>",
    template=_deepseek_template(""),
    vocabulary=deepseek,
    eos="<｜end▁of▁sentence｜>",
    added=_DEEPSEEK_TOKENS,
    special=("<｜begin▁of▁sentence｜>",),
)
R1 = Format(
    name="DeepSeek R1, later template",
    tail="<｜Assistant｜><think>\n",
    says="~\n</think>\n\n@",
    tokens=11,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<｜Assistant｜>\n\n@<｜end▁of▁sentence｜>",
    past_at_4="<｜Assistant｜>@<｜end▁of▁sentence｜>",
    template=_deepseek_template("{{- '<think>\n' }}"),
    vocabulary=deepseek,
    eos="<｜end▁of▁sentence｜>",
    added=_DEEPSEEK_TOKENS,
    special=("<｜begin▁of▁sentence｜>",),
)
V31 = Format(
    name="DeepSeek V3.1",
    tail="<｜Assistant｜><think>",
    says="~</think>@",
    tokens=11,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<｜Assistant｜></think>@<｜end▁of▁sentence｜>",
    template=_deepseek_template(
        "{{- '<think>' if thinking is defined and thinking else '</think>' }}",
        "<｜Assistant｜></think>",
    ),
    vocabulary=deepseek,
    eos="<｜end▁of▁sentence｜>",
    added=_DEEPSEEK_TOKENS,
    special=("<｜begin▁of▁sentence｜>",),
    on={"thinking": True},
    off={"thinking": False},
    off_tail="<｜Assistant｜></think>",
)
V4 = Format(
    name="DeepSeek V3.2 and V4",
    tail="<｜Assistant｜><think>",
    says="~</think>@",
    tokens=11,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<｜Assistant｜></think>@<｜end▁of▁sentence｜>",
    template="",
    vocabulary=deepseek,
    eos="<｜end▁of▁sentence｜>",
    added=(*_DEEPSEEK_TOKENS, "｜DSML｜"),
    special=("<｜begin▁of▁sentence｜>",),
    off={"enable_thinking": False},
    off_tail="<｜Assistant｜></think>",
    config={"chat_template_type": "deepseek_v32"},
)
