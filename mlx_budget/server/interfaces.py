"""The interfaces of the server beside mlx-lm's own, by their paths.

Knows paths; nothing of HTTP or of models.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .messages import CountTokens, Messages
from .response_store import ResponseStore
from .responses import CountInput, Responses
from .translation import Translation

Make = Callable[[Mapping[str, Any], ResponseStore], Translation]

# Where mlx-lm answers what all of them are translations of.
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
TRANSLATED: dict[str, Make] = {
    "/v1/messages": lambda body, store: Messages(body),
    "/v1/messages/count_tokens": lambda body, store: CountTokens(body),
    RESPONSES: Responses,
    f"{RESPONSES}/input_tokens": CountInput,
    "/responses": Responses,
}
