"""Formats with markers and turns of their own: channels, brackets, spelt tags."""

from .base import Format

MAGISTRAL = Format(
    name="Magistral",
    tail="[/INST]",
    says="[THINK]~[/THINK]@",
    tokens=11,
    at_4="[THINK]I add the two«[/THINK]»@",
    at_0="[THINK]«[/THINK]»@",
    past="[THINK]~[/THINK]@</s>",
    past_at_4="[THINK]I add the two[/THINK]@</s>",
    template="""\
{{- '<s>' }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}
{%- else %}{{- m.content + '</s>' }}{% endif %}
{%- endfor %}""",
    eos="</s>",
    added=(),
    special=("<s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]", "[TOOL_CALLS]"),
    start="[THINK]",
    end="[/THINK]",
    is_named=True,
    call='[TOOL_CALLS]add[ARGS]{"a": 2}',
    config={"tool_parser_type": "mistral"},
)
GPT_OSS = Format(
    name="gpt-oss",
    tail="<|end|><|start|>assistant",
    says="<|channel|>analysis<|message|>~<|end|>"
    "<|start|>assistant<|channel|>final<|message|>@",
    tokens=11,
    at_4="<|channel|>analysis<|message|>I add the two«<|end|>"
    "<|start|>assistant<|channel|>final<|message|>»@",
    at_0="<|channel|>analysis<|message|>«<|end|>"
    "<|start|>assistant<|channel|>final<|message|>»@",
    past="<|start|>assistant<|channel|>final<|message|>@<|end|>",
    template="""\
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') }}
{{- '<|end|>' }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- elif m.thinking and m.tool_calls %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
{%- else %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}""",
    eos="<|return|>",
    ends=("<|call|>",),
    added=(),
    special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
    start="<|channel|>analysis<|message|>",
    end="<|end|><|start|>assistant<|channel|>final<|message|>",
    call="<|end|><|start|>assistant<|channel|>commentary to=functions.add "
    '<|constrain|>json<|message|>{"a": 2}',
)
GEMMA4 = Format(
    name="Gemma 4",
    tail="<turn|>\n<|turn>model\n",
    says="<|channel>thought\n~\n<channel|>@",
    tokens=13,
    at_4="<|channel>thought\nI add the«\n<channel|>»@",
    at_0="<|channel>thought«\n<channel|>»@",
    past="<|turn>model\n@<turn|>\n",
    template="""\
{{- '<bos>' }}
{%- if enable_thinking %}{{- '<|turn>system\n<|think|><turn|>\n' }}{% endif %}
{%- for m in messages %}
{{- '<|turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}
{{- m.content.split('<channel|>')[-1] + '<turn|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn>model\n' }}
{{- '' if enable_thinking else '<|channel>thought\n<channel|>' }}{% endif %}""",
    eos="<turn|>",
    added=(),
    special=(
        "<bos>",
        "<|turn>",
        "<|think|>",
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
    ),
    start="<|channel>thought",
    end="<channel|>",
    off={"enable_thinking": False},
    off_tail="<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
    call="<|tool_call>call:add{a:2}<tool_call|>",
    config={"tool_parser_type": "gemma4"},
)
SEED_OSS = Format(
    name="Seed-OSS",
    tail="<seed:eos><seed:bos>assistant\n",
    says="<seed:think>~</seed:think>\n@",
    tokens=11,
    at_4="<seed:think>I add the two«</seed:think>»@",
    at_0="<seed:think>«</seed:think>»@",
    past="<seed:bos>assistant\n<seed:think>~</seed:think>\n@<seed:eos>",
    past_at_4="<seed:bos>assistant\n<seed:think>I add the two</seed:think>\n@",
    template="""\
{%- for m in messages %}
{{- '<seed:bos>' + m.role + '\n' }}
{%- if m.reasoning_content %}
{{- '<seed:think>' + m.reasoning_content + '</seed:think>\n' }}{% endif %}
{{- m.content + '<seed:eos>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<seed:bos>assistant\n' }}
{{- '<seed:think><seed:cot_budget_reflect>' if thinking_budget == 0 else '' }}
{%- endif %}""",
    eos="<seed:eos>",
    added=(),
    special=(
        "<seed:bos>",
        "<seed:think>",
        "</seed:think>",
        "<seed:cot_budget_reflect>",
        "</seed:cot_budget_reflect>",
    ),
    start="<seed:think>",
    end="</seed:think>",
    is_named=True,
)
_KIMI = """\
{%- for m in messages %}
{{- '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' }}
{%- if m.role == 'assistant' %}{%- set thinking = m.reasoning_content %}
{{- '<think></think>' }}{% endif %}
{{- m.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_assistant|>assistant<|im_middle|>' }}REPLY{% endif %}"""
_KIMI_SPECIAL = (
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_KIMI_CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
    '<|tool_call_argument_begin|>{"a": 2}<|tool_call_end|><|tool_calls_section_end|>'
)
KIMI_K2 = Format(
    name="Kimi K2 Thinking",
    tail="<|im_end|><|im_assistant|>assistant<|im_middle|>",
    says="<think>~</think>@",
    tokens=11,
    at_4="<think>I add the two«</think>»@",
    at_0="<think>«</think>»@",
    past="<|im_assistant|>assistant<|im_middle|><think></think>@<|im_end|>",
    template=_KIMI.replace("REPLY", ""),
    special=_KIMI_SPECIAL,
    call=_KIMI_CALL,
    config={"tool_parser_type": "kimi_k2"},
)
KIMI_K25 = Format(
    name="Kimi K2.5 and K2.6",
    tail="<|im_end|><|im_assistant|>assistant<|im_middle|><think>",
    says="~</think>@",
    tokens=11,
    at_4="I add the two«</think>»@",
    at_0="«</think>»@",
    past="<|im_assistant|>assistant<|im_middle|><think></think>@<|im_end|>",
    template=_KIMI.replace(
        "REPLY",
        "{{- '<think></think>' if thinking is defined and not thinking "
        "else '<think>' }}",
    ),
    special=_KIMI_SPECIAL,
    off={"thinking": False},
    off_tail="<|im_end|><|im_assistant|>assistant<|im_middle|><think></think>",
    call=_KIMI_CALL,
    config={"tool_parser_type": "kimi_k2"},
)
_K3_THINKING = '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>'
KIMI_K3 = Format(
    name="Kimi K3",
    tail="<|close|>message<|sep|><|end_of_msg|>" + _K3_THINKING,
    says="~<|close|>think<|sep|><|open|>response<|sep|>@<|close|>response<|sep|>"
    "<|close|>message<|sep|>",
    tokens=11,
    at_4="I add the two«<|close|>think<|sep|>»<|open|>response<|sep|>@"
    "<|close|>response<|sep|>",
    at_0="«<|close|>think<|sep|>»<|open|>response<|sep|>@",
    past=_K3_THINKING + "~<|close|>think<|sep|><|open|>response<|sep|>@"
    "<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>",
    past_at_4=_K3_THINKING + "I add the two<|close|>think<|sep|><|open|>response"
    "<|sep|>@<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>",
    template="""\
{%- set think = thinking if thinking is defined else true %}
{%- for m in messages %}
{{- '<|open|>message role="' + m.role + '"<|sep|>' }}
{%- if m.role == 'assistant' %}
{{- '<|open|>think<|sep|>' + (m.reasoning_content or '') + '<|close|>think<|sep|>' }}
{{- '<|open|>response<|sep|>' + m.content + '<|close|>response<|sep|>' }}
{%- else %}{{- m.content }}{% endif %}
{{- '<|close|>message<|sep|><|end_of_msg|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|open|>message role="assistant"<|sep|>' }}
{{- '<|open|>think<|sep|>' if think else '<|open|>response<|sep|>' }}{% endif %}""",
    eos="<|end_of_msg|>",
    added=(),
    special=("<|open|>", "<|close|>", "<|sep|>"),
    start="<|open|>think<|sep|>",
    end="<|close|>think<|sep|>",
    off={"thinking": False},
    off_tail="<|close|>message<|sep|><|end_of_msg|>"
    '<|open|>message role="assistant"<|sep|><|open|>response<|sep|>',
    call='<|open|>tools<|sep|><|open|>call tool="add" index="1"<|sep|>'
    '<|open|>argument key="a" type="number"<|sep|>2<|close|>argument<|sep|>'
    "<|close|>call<|sep|><|close|>tools<|sep|>",
    config={"tool_parser_type": "kimi_k3"},
)
HUNYUAN = Format(
    name="Hunyuan A13B",
    tail="<|extra_0|>",
    says="<think>\n~\n</think>\n<answer>\n@\n</answer>",
    tokens=13,
    at_4="<think>\nI add the«\n</think>\n»@",
    at_0="<think>«\n\n</think>\n»@",
    past="@\n</answer><|eos|>",
    past_at_4="@<|eos|>",
    template="""\
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|extra_4|>' + m.content + '<|extra_0|>' }}
{%- else %}{{- m.content.split('<answer>')[-1].strip() + '<|eos|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and not enable_thinking %}
{{- '<think>\n\n</think>\n' }}{% endif %}""",
    eos="<|eos|>",
    added=(),
    special=("<|extra_0|>", "<|extra_4|>"),
    is_named=True,
    on={"enable_thinking": True},  # mlx-lm switches thinking off that it does not know
    off={"enable_thinking": False},
    off_tail="<|extra_0|><think>\n\n</think>\n",
)
HY3 = Format(
    name="Hunyuan 3 (Hy3)",
    tail="<｜hy_Assistant:opensource｜><think:opensource>",
    says="~</think:opensource>@",
    tokens=11,
    at_4="I add the two«</think:opensource>»@",
    at_0="«</think:opensource>»@",
    past="<｜hy_Assistant:opensource｜><think:opensource></think:opensource>@"
    "<｜hy_eos:opensource｜>",
    template="""\
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<｜hy_User:opensource｜>' + m.content }}
{%- else %}{%- set thinking = m.reasoning_content %}
{{- '<｜hy_Assistant:opensource｜><think:opensource></think:opensource>' }}
{{- m.content + '<｜hy_eos:opensource｜>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<｜hy_Assistant:opensource｜><think:opensource>' }}
{{- '' if reasoning_effort in ('low', 'high') else '</think:opensource>' }}
{%- endif %}""",
    eos="<｜hy_eos:opensource｜>",
    added=("<think:opensource>", "</think:opensource>"),
    special=("<｜hy_User:opensource｜>", "<｜hy_Assistant:opensource｜>"),
    start="<think:opensource>",
    end="</think:opensource>",
    is_named=True,
    on={"reasoning_effort": "high"},
    off={"reasoning_effort": "no_think"},
    off_tail="<｜hy_Assistant:opensource｜><think:opensource></think:opensource>",
)
