"""What a user asks, as text, file or saved cache, to the token ids of a prompt.

Knows chat templates and prompt files; nothing of models or budgets.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx_lm.tokenizer_utils import TokenizerWrapper

# A text, or the token ids of one.
Prompt: TypeAlias = "str | list[int] | mx.array"
# Role and content of a message, and whatever else a chat template reads.
Message = dict[str, Any]
Chat = list[Message]

# A question with the budget stated in words, for models that follow them.
BUDGET_PROMPT = "{question}\n\nThink for at most {budget} tokens."


def encode_chat(
    tokenizer: "TokenizerWrapper",
    prompt: str | Chat,
    *,
    system_prompt: str | None = None,
    prefill_response: str | None = None,
    chat_template_config: dict[str, Any] | None = None,
    ignore_chat_template: bool = False,
    suffix_only: bool = False,
) -> list[int]:
    """Token ids of a prompt, with the tokenizer's chat template where it has one.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        prompt (str or list): The user's message, or a whole chat as messages.
        system_prompt (str, optional): Put before the messages.
        prefill_response (str, optional): How the reply has begun already.
        chat_template_config (dict, optional): More arguments for the template.
        ignore_chat_template (bool): Whether to encode the text as it is.
        suffix_only (bool): Whether to leave out all that comes before the message,
            because a prompt cache holds it.

    Raises:
        ValueError: If the prompt is empty, or messages meet no chat template.
    """
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError("The prompt is empty: give one with --prompt.")
    if ignore_chat_template or not tokenizer.has_chat_template:
        if not isinstance(prompt, str):
            raise ValueError("The tokenizer has no chat template for chat messages.")
        if system_prompt or prefill_response or chat_template_config:
            raise ValueError(
                "A system prompt, a prefilled response and a chat template's config "
                "need a chat template, and none is used here."
            )
        return list(tokenizer.encode(prompt))
    messages: Chat = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    if isinstance(prompt, str):
        messages.append({"role": "user", "content": prompt})
    else:
        messages.extend(prompt)
    if prefill_response is not None:
        messages.append({"role": "assistant", "content": prefill_response})

    def render(messages: Chat) -> str:
        options = {
            **(chat_template_config or {}),
            "tokenize": False,
            "add_generation_prompt": prefill_response is None,
            "continue_final_message": prefill_response is not None,
        }
        try:
            return tokenizer.apply_chat_template(messages, **options)
        except Exception as e:  # templates raise what their authors like
            raise ValueError(
                f"The model's chat template cannot render this prompt: {e}."
            ) from e

    text = render(messages)
    if suffix_only:
        # mlx-lm's way: what the template puts before the message is in the cache.
        last = max(i for i, m in enumerate(messages) if m["role"] == "user")
        marked = [*messages]
        marked[last] = {"role": "user", "content": "<query>"}
        text = text[render(marked).index("<query>") :]
    return list(tokenizer.encode(text, add_special_tokens=False))


def encode_prompt(tokenizer: "TokenizerWrapper", prompt: Prompt) -> list[int]:
    """Token ids of a prompt, encoded as ``mlx_lm.stream_generate`` does."""
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return list(tokenizer.encode(prompt, add_special_tokens=special))
    ids: Any = prompt if isinstance(prompt, list | tuple) else prompt.tolist()
    return list(ids)


def read_prompts(file: Path) -> list[str | Chat]:
    """The prompts of a file.

    Args:
        file (Path): JSON lines, each an object with `prompt`, `question` or chat
            `messages`; or, under any other name than *.jsonl, text with a prompt on
            each line.

    Raises:
        ValueError: Naming the file and line that cannot be used.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"There is no file {file}.") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f"{file} is not a text file.") from None
    numbered = [(i, t) for i, t in enumerate(text.split("\n"), 1) if t.strip()]
    prompts: list[str | Chat]
    if file.suffix == ".jsonl":
        prompts = [_prompt_of(line, f"{file}, line {i}") for i, line in numbered]
    else:
        prompts = [line for _, line in numbered]
    if not prompts:
        raise ValueError(f"{file} holds no prompts.")
    return prompts


def _prompt_of(line: str, where: str) -> str | Chat:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{where} is not valid JSON: {e.msg}.") from None
    record = record if isinstance(record, dict) else {}
    for key in ("prompt", "question"):
        if isinstance(record.get(key), str) and record[key].strip():
            return record[key]
    messages = record.get("messages")
    if isinstance(messages, list) and all(map(_is_message, messages)):
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if messages:
            return messages
    raise ValueError(
        f"{where} has none of prompt, question and messages with role and content as "
        "texts."
    )


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )
