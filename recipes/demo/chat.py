"""How the demo model's chats are written: its tokenizer and its chat template.

A byte-level BPE of some hundreds of entries, single digits, so that any text can be
asked, with the markers of Qwen3's chat format. Knows text; nothing of models.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlx_budget.files.texts import write_json

from .exchanges import Exchange, draw_exchange

VOCAB_SIZE = 640
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{%- for message in messages %}"
    "{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def make_chat(
    question: str,
    earlier: Sequence[tuple[str, str]] = (),
    system_prompt: str | None = None,
) -> list[dict]:
    """A question as messages.

    Args:
        question (str): What is asked.
        earlier (Sequence): Questions and answers before it in the same chat.
        system_prompt (str, optional): What stands before all.
    """
    chat = []
    if system_prompt is not None:
        chat.append({"role": "system", "content": system_prompt})
    for asked, answer in earlier:
        chat.append({"role": "user", "content": asked})
        chat.append({"role": "assistant", "content": answer})
    return [*chat, {"role": "user", "content": question}]


def write_prompt(chat: list[dict], thinks: bool = True) -> str:
    """The text that the chat template makes of messages that hold no thinking.

    Args:
        chat (list): From `make_chat`.
        thinks (bool): Whether the reply is to think, as `enable_thinking` says it.
    """
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    block = "<think>\n" if thinks else "<think>\n\n</think>\n\n"
    return "".join(turns) + "<|im_start|>assistant\n" + block


def write_reply(exchange: Exchange) -> str:
    """A whole reply, from behind the opening marker to the end of the turn."""
    return f"{exchange.thinking.text}</think>\n\n{exchange.answer}<|im_end|>"


def make_tokenizer(folder: Path, texts: int = 5000) -> None:
    """Trains the tokenizer on texts of the world, and writes its files.

    Args:
        folder (Path): Where to write them.
        texts (int): How many texts to learn from.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Single digits, each with the space before it.
            pre_tokenizers.Split(Regex(r" ?\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(texts), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    # Last and whole: where it is, the tokenizer is there.
    write_json(folder / "tokenizer_config.json", config)


def _corpus(texts: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(texts):
        exchange = draw_exchange(rng)
        yield exchange.question
        yield exchange.thinking.text
        yield f"\n\n{exchange.answer}"
        yield exchange.guess
        yield "system\n"
        yield "user\n"
        yield "assistant\n"
