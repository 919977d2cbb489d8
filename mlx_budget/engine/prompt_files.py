"""The prompts of data files: texts, and chats without their replies.

Knows fields and rows; nothing of tokenizers.
"""

from pathlib import Path

from ..files.rows import Row, read_rows
from .lettered import read_choices, with_choices
from .messages import Chat, as_chat, as_prompt, describe_fields

_FIELDS = ("prompt", "question", "problem", "messages")
_NAMES = "prompt, question, problem or messages"


def read_prompts(data: str | Path) -> list[str | Chat]:
    """The prompts of a data file.

    Args:
        data (str or Path): See `rows.read_rows`. A row is an object with `prompt`,
            `question`, `problem` or `messages`, or a text, or a list of messages.
            `choices` are put below the question, as an evaluation asks them. A file
            *.txt, or one without a suffix, is text with a prompt on each line.

    Raises:
        ValueError: Naming the file and the row that cannot be used.
    """
    prompts = []
    for row in read_rows(data, (*_FIELDS, "choices"), _FIELDS, takes_text=True):
        try:
            prompt = _prompt_of(row)
        except ValueError as e:
            raise ValueError(f"{row.name}: {e}.") from None
        prompts.append(_with_choices(prompt, row))
    if not prompts:
        raise ValueError(f"{data} holds no prompts.")
    return prompts


def _prompt_of(row: Row) -> str | Chat:
    value = row.value
    if not row.is_json:
        raise ValueError(f"it is not valid JSON ({row.fault})")
    candidates = [value]
    if isinstance(value, dict):
        candidates = [value.get(name) for name in _FIELDS]
        if isinstance(value.get("messages"), str):  # JSON in the cell of a table
            candidates[-1] = as_chat(value["messages"])
    for prompt in map(as_prompt, candidates):
        if prompt is not None:
            return prompt
    if isinstance(value, dict) and not any(name in value for name in _FIELDS):
        raise ValueError(
            f"no prompt in it: it has {describe_fields(value)}, and a prompt is read "
            f"from {_NAMES}"
        )
    raise ValueError(
        f"no prompt in it: give {_NAMES}, as a text that is not empty or as messages "
        "with role and content"
    )


def _with_choices(prompt: str | Chat, row: Row) -> str | Chat:
    """A prompt with the choices of its row below what is asked last."""
    if not isinstance(row.value, dict):
        return prompt
    try:
        choices = read_choices(row.value)
    except ValueError as e:
        raise ValueError(f"{row.name} {e}") from None
    if isinstance(choices, bool):
        return prompt
    if isinstance(prompt, str):
        return with_choices(prompt.strip(), choices)
    *earlier, last = prompt
    question = with_choices(last["content"].strip(), choices)
    return [*earlier, {**last, "content": question}]
