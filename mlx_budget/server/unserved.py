"""Fields of OpenAI's chat and text completions that are not served here.

What would change the reply is refused by its name, never dropped. Knows fields; nothing
of HTTP or of replies.
"""

from collections.abc import Mapping
from typing import Any

from .translation import refuse_fields

# Each with the values that ask for nothing. Taken and without effect is what says
# nothing of the reply: user, metadata, store, service_tier, safety_identifier,
# prompt_cache_key and the like.
_BOTH: dict[str, tuple[Any, ...]] = {
    "moderation": (),
    "best_of": (1,),
    "prompt_logprobs": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "mirostat": (0,),
    "grammar": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "guided_regex": ("",),
    "structured_outputs": ({},),
    "regex": ("",),
    "ebnf": ("",),
    "images": ([],),
}
CHAT_ONLY: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "verbosity": ("medium",),
    "prompt": (),
    "echo": (False,),
    "suffix": ("",),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
TEXT_ONLY: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "messages": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (),
}


def refuse_unserved(body: Mapping[str, Any], is_chat: bool) -> None:
    """Refuses what cannot be honoured.

    Args:
        body (Mapping): Of a chat or a text completion.
        is_chat (bool): Which of them.

    Raises:
        RequestError: Naming the first such field.
    """
    where = "chat completions" if is_chat else "text completions"
    refuse_fields(body, {**_BOTH, **(CHAT_ONLY if is_chat else TEXT_ONLY)}, where)
