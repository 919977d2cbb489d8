"""A request that cannot be honoured. Knows nothing of how it is said to a client."""


class RequestError(ValueError):
    """A request that cannot be honoured.

    Attributes:
        field: The field that is wrong, if it is one.
        status: Of HTTP.
    """

    def __init__(self, message: str, field: str | None = None, status: int = 400):
        super().__init__(message)
        self.field = field
        self.status = status
