"""How the demo model's chats are written: its tokenizer and its chat template.

A byte-level BPE of some hundreds of entries, single digits, so that any text can be
asked, with the markers of Qwen3's chat format. Knows text; nothing of models.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .problems import Problem, make_problem
from .reasoning import write_thinking

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
    "{%- endif %}"
)


def write_prompt(question: str) -> str:
    """The text that the chat template makes of one question."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def write_reply(thinking: str, problem: Problem) -> str:
    """A whole reply, from behind the opening marker to the end of the turn."""
    return f"{thinking}</think>\n\nThe answer is {problem.answer}.<|im_end|>"


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
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _corpus(texts: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(texts):
        problem = make_problem(rng, held_out=False, is_story=rng.random() < 0.7)
        yield problem.question
        yield write_thinking(rng, problem).text
        yield f"\n\nThe answer is {problem.answer}."
        yield "user\n"
        yield "assistant\n"
