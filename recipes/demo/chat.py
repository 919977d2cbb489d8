"""How the demo model's chats are written: its tokenizer and its chat template.

A byte-level BPE of some hundreds of entries, single digits, so that any text can be
asked, with the markers of Qwen3's chat format. Knows text; nothing of models.
"""

import json
import random
from collections.abc import Iterator, Sequence
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
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def make_chat(question: str, earlier: Sequence[Problem] = ()) -> list[dict]:
    """A question as messages, behind problems that were asked and answered before."""
    chat = []
    for problem in earlier:
        chat.append({"role": "user", "content": problem.question})
        chat.append({"role": "assistant", "content": _answer(problem)})
    return [*chat, {"role": "user", "content": question}]


def write_prompt(chat: list[dict]) -> str:
    """The text that the chat template makes of messages without thinking."""
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    return "".join(turns) + "<|im_start|>assistant\n<think>\n"


def write_reply(thinking: str, problem: Problem) -> str:
    """A whole reply, from behind the opening marker to the end of the turn."""
    return f"{thinking}</think>\n\n{_answer(problem)}<|im_end|>"


def _answer(problem: Problem) -> str:
    return f"The answer is {problem.answer}."


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
        yield f"\n\n{_answer(problem)}"
        yield "user\n"
        yield "assistant\n"
