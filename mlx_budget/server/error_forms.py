"""An error as each interface tells it. Knows paths and statuses; nothing of causes."""

import json
from typing import Any

from .errors import RequestError

# The kinds of error of OpenAI's interface, and of Anthropic's.
_OPENAI = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC = {**_OPENAI, 413: "request_too_large", 503: "overloaded_error"}
_CODES = {401: "invalid_api_key", 404: "not_found"}


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's interface."""
    return path.partition("?")[0].startswith("/v1/messages")


def anthropic_error(error: RequestError) -> dict[str, Any]:
    """What tells of an error in Anthropic's interface."""
    kind = _ANTHROPIC.get(error.status, _kind(error.status))
    told: dict[str, Any] = {"type": kind, "message": str(error)}
    if error.details is not None:
        told["details"] = dict(error.details)
    return {"type": "error", "error": told}


def error_content(error: RequestError, path: str) -> bytes:
    """What tells of an error, in the form of the interface that a path belongs to.

    Args:
        error (RequestError): What is wrong.
        path (str): That was asked for.
    """
    if is_anthropic(path):
        return json.dumps(anthropic_error(error)).encode()
    kind = _OPENAI.get(error.status, _kind(error.status))
    content = {
        "message": str(error),
        "type": kind,
        "param": error.field,
        "code": _CODES.get(error.status),
    }
    return json.dumps({"error": content}).encode()


def _kind(status: int) -> str:
    return "invalid_request_error" if status < 500 else "api_error"
