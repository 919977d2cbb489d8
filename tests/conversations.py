"""Turns of a conversation in tests, and what the whole of it gives from scratch."""

import mlx.core as mx

from mlx_budget import load, stream_generate

FIRST, SECOND = "What is 7 + 1 + 5 - 9 + 8?", "What is 6 - 2?"
KEEPING = (
    "{%- for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
    "{%- endfor %}{{ '<|im_start|>assistant\n<think>' }}"
)
# Drops the thinking of earlier turns, and has a switch for that of the next.
SWITCHED = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{- m.content.split('</think>\n\n')[-1] + '<|im_end|>\n' }}{%- endfor %}"
    "{{- '<|im_start|>assistant\n<think>\n' }}"
    "{{- '' if enable_thinking else '\n</think>\n\n' }}"
)
OFF = {"enable_thinking": False}


def with_template(template: str):
    """The built-in model, with a chat template in place of its own."""
    model, tokenizer, predictor = load("demo")
    tokenizer._tokenizer.chat_template = template
    return model, tokenizer, predictor


def ask(conversation, question, budget=None, stop_after=None):
    """A turn's responses, stopped after so many tokens."""
    responses = []
    turn = conversation.ask(question, budget, lambda: len(responses) == stop_after)
    for response in turn:
        responses.append(response)
    return responses


def tokens(responses) -> list[int]:
    return [r.token for r in responses]


def said(responses) -> str:
    return "".join(r.text for r in responses)


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def from_scratch(loaded, prompt, budget=None, **options):
    model, tokenizer, predictor = loaded
    options = {"predictor": predictor, "thinking_budget": budget, **options}
    return list(stream_generate(model, tokenizer, prompt, **options))


def assert_same(responses, whole) -> None:
    """Checks the tokens, and the first step's log-probabilities.

    Read in other pieces, a prompt gives other roundings of float32, some 1e-5.
    """
    assert tokens(responses) == tokens(whole)
    first, expected = responses[0].logprobs, whole[0].logprobs
    assert mx.allclose(first, expected, rtol=0, atol=1e-3)
