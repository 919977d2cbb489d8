"""What a server's log looks like. Knows log records; nothing of requests."""

import json
import logging
import time

FORMATS = ("text", "json")
_TEXT = "%(asctime)s - %(levelname)s - %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with what is known of a request beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def set_up_logging(level: str, form: str) -> None:
    """Logs on stderr, one line a request.

    mlx-lm's server tells of each piece of a prompt, and at level DEBUG all that
    requests and replies say: of it only warnings are shown.

    Args:
        level (str): Lowest that is shown.
        form (str): One of `FORMATS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if form == "json" else logging.Formatter(_TEXT)
    )
    handler.addFilter(_is_wanted)
    logging.basicConfig(level=level, handlers=[handler])


def _is_wanted(record: logging.LogRecord) -> bool:
    is_of_mlx_lm = record.pathname.replace("\\", "/").endswith("mlx_lm/server.py")
    return record.levelno >= logging.WARNING or not is_of_mlx_lm
