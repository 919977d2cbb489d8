"""A request that cannot be honoured. Knows nothing of how it is said to a client."""

from collections.abc import Mapping
from typing import Any


class RequestError(ValueError):
    """A request that cannot be honoured.

    Attributes:
        field: The field that is wrong, if it is one.
        status: Of HTTP.
        details: What programs are told besides, in Anthropic's interface.
    """

    def __init__(
        self,
        message: str,
        field: str | None = None,
        status: int = 400,
        details: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.field = field
        self.status = status
        self.details = details

    def named(self, names: Mapping[str, str]) -> "RequestError":
        """The same where fields are called otherwise.

        Args:
            names (Mapping[str, str]): What else fields are called.
        """
        if self.field is None or self.field not in names:
            return self
        name = names[self.field]
        message = str(self).replace(self.field, name)
        return RequestError(message, name, self.status, self.details)


class PromptCounted(BaseException):
    """Ends a request that only asks how many tokens its prompt has.

    It is no error, and nothing that handles errors is to take it for one.

    Attributes:
        tokens: Of the prompt.
    """

    def __init__(self, tokens: int):
        super().__init__(tokens)
        self.tokens = tokens
