"""What a user asks, as a text or a chat, to the token ids of a prompt.

Knows chat templates and tokenizers; nothing of files, models or budgets.
"""

import operator
from typing import TYPE_CHECKING, Any, TypeAlias

from .context import check_length, check_tokens, check_unicode
from .messages import ROLES, Chat, plain_chat

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx_lm.tokenizer_utils import TokenizerWrapper

# A text, or the token ids of one.
Prompt: TypeAlias = "str | list[int] | mx.array"

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
    most_tokens: int | None = None,
) -> list[int]:
    """Token ids of a prompt, with the tokenizer's chat template where it has one.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        prompt (str or list): The user's message, or a whole chat as messages, whose
            contents are texts or OpenAI's parts of type text.
        system_prompt (str, optional): Put before the messages.
        prefill_response (str, optional): How the reply has begun already.
        chat_template_config (dict, optional): More arguments for the template.
        ignore_chat_template (bool): Whether to encode the text as it is.
        suffix_only (bool): Whether to leave out all that comes before the message,
            because a prompt cache holds it.
        most_tokens (int, optional): Of the prompt, see `context.context_length`.

    Raises:
        ValueError: If the prompt is empty, too long or not Unicode, a message is not
            one or of a role that the template leaves out, or messages meet no chat
            template.
    """
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError("The prompt is empty: give one with --prompt.")
    if ignore_chat_template or not tokenizer.has_chat_template:
        if not isinstance(prompt, str):
            if tokenizer.has_chat_template:
                raise ValueError(
                    "Chat messages need the chat template: leave out "
                    "--ignore-chat-template, or give prompts that are texts."
                )
            raise ValueError("The tokenizer has no chat template for chat messages.")
        if system_prompt or prefill_response or chat_template_config:
            raise ValueError(
                "A system prompt, a prefilled response and a chat template's config "
                "need a chat template, and none is used here."
            )
        return _encode(tokenizer, prompt, most_tokens)
    messages: Chat = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    if isinstance(prompt, str):
        messages.append({"role": "user", "content": prompt})
    else:
        try:
            messages.extend(plain_chat(prompt))
        except ValueError as e:
            raise ValueError(f"The prompt's {e}.") from None
    if prefill_response is not None:
        messages.append({"role": "assistant", "content": prefill_response})
    if most_tokens is not None:
        contents = (message.get("content") or "" for message in messages)
        check_length(tokenizer, contents, most_tokens)

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
    _check_roles(messages, text)
    if suffix_only:
        # mlx-lm's way: what the template puts before the message is in the cache.
        last = max(i for i, m in enumerate(messages) if m["role"] == "user")
        marked = [*messages]
        marked[last] = {"role": "user", "content": "<query>"}
        text = text[render(marked).index("<query>") :]
    return _encode(tokenizer, text, most_tokens, add_special_tokens=False)


def _check_roles(messages: Chat, text: str) -> None:
    """Checks that no message of an unusual role was left out without a word."""
    for message in messages:
        role, content = message["role"], (message.get("content") or "").strip()
        if role not in ROLES and content not in text:
            raise ValueError(
                f"The model's chat template leaves out messages of the role {role!r}: "
                f"use {', '.join(ROLES[:-1])} or {ROLES[-1]}."
            )


def wrapped(tokenizer: Any) -> "TokenizerWrapper":
    """A tokenizer as mlx-lm has it, also one that came from Transformers."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    is_one = isinstance(tokenizer, TokenizerWrapper)
    return tokenizer if is_one else TokenizerWrapper(tokenizer)


def encode_prompt(
    tokenizer: "TokenizerWrapper",
    prompt: Prompt,
    most_tokens: int | None = None,
    vocab_size: int | None = None,
) -> list[int]:
    """Token ids of a prompt, encoded as ``mlx_lm.stream_generate`` does.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        prompt (str, list or mx.array): A text, or the ids themselves.
        most_tokens (int, optional): Of a text, see `context.context_length`.
        vocab_size (int, optional): V, if it is known.

    Raises:
        ValueError: If a text is too long or not Unicode, or an id is of no token.
    """
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return _encode(tokenizer, prompt, most_tokens, add_special_tokens=special)
    return _checked_ids(prompt, vocab_size)


def _checked_ids(prompt: Any, vocab_size: int | None) -> list[int]:
    """Token ids that were given: MLX reads whatever lies behind the last one."""
    try:
        listed = prompt if isinstance(prompt, list | tuple) else prompt.tolist()
        ids = [operator.index(token) for token in listed]
    except (TypeError, AttributeError):
        raise ValueError(
            "A prompt must be a text or token ids, in a list or an array of one "
            f"dimension, and this one is {prompt!r:.60}. Apply the chat template to "
            "messages first."
        ) from None
    most = vocab_size or 2**31  # what MLX can index by
    if outside := [token for token in ids if not 0 <= token < most]:
        raise ValueError(
            f"The prompt has the token {outside[0]:,}, and those of the model are 0 to "
            f"{most - 1:,}."
        )
    return ids


def _encode(
    tokenizer: "TokenizerWrapper", text: str, most_tokens: int | None, **options: bool
) -> list[int]:
    check_unicode(text, "The prompt")
    if most_tokens is None:
        return list(tokenizer.encode(text, **options))
    check_length(tokenizer, [text], most_tokens)
    ids = list(tokenizer.encode(text, **options))
    check_tokens(ids, most_tokens)
    return ids
