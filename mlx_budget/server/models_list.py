"""The list of models, and one of them by its name.

Knows HTTP and mlx-lm's own list; nothing of models.
"""

import io
import json
from typing import Any
from urllib.parse import unquote

from .errors import RequestError
from .pages import PagesHandler

MODELS = "/v1/models"


class ModelsHandler(PagesHandler):
    """`PagesHandler` with ``/v1/models`` and ``/v1/models/NAME``."""

    created: int
    model: str

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.rstrip("/") == MODELS:
            answer = {"object": "list", "data": self._models()}
            self._send(json.dumps(answer).encode(), "application/json")
        elif path.startswith(f"{MODELS}/"):
            self._tell_model(path.removeprefix(f"{MODELS}/").rstrip("/"))
        else:
            super().do_GET()

    def _tell_model(self, name: str) -> None:
        if name in {"default_model", *self.own_names()}:
            found = [self._own()]
        else:
            found = [entry for entry in self._models() if entry["id"] == name]
        if not found:
            self.refuse(RequestError(f"There is no model {name[:80]!r}.", "model", 404))
            return
        self._send(json.dumps(found[0]).encode(), "application/json")

    def _own(self) -> dict[str, Any]:
        return self._entry({"id": self.model, "created": self.created})

    def _models(self) -> list[dict[str, Any]]:
        """The served model, and what else the Hub's cache holds."""
        names = self.own_names()
        others = [entry for entry in self._cached() if entry["id"] not in names]
        return [self._own(), *map(self._entry, others)]

    def _entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "object": "model", "owned_by": "mlx-budget"}

    def _cached(self) -> list[dict[str, Any]]:
        if self.guard.only_model:
            return []
        # mlx-lm's own answer is caught on its way out.
        path, client, buffer = self.path, self.wfile, io.BytesIO()
        begun, record = self.has_begun, self.record.status
        self.path, self.wfile = MODELS, buffer
        try:
            self.handle_models_request()
        finally:
            self.path, self.wfile = path, client
            self.has_begun, self.record.status = begun, record
        listed: list[dict[str, Any]] = json.loads(
            buffer.getvalue().partition(b"\r\n\r\n")[2]
        )["data"]
        return listed
