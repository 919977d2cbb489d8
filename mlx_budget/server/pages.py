"""What the server tells of itself: its health, its counts, a page to look at.

Knows HTTP and the ledger; nothing of the interfaces.
"""

import base64
import functools
import hashlib
import json
import re
from importlib import resources
from typing import Any

from .errors import RequestError
from .front import GuardedHandler
from .metrics import HOW_TO, Metrics

# Without a token for so long the server is no longer held for alive.
STALLED_SECONDS = 120
_PAGE = "page.html"


class PagesHandler(GuardedHandler):
    """`GuardedHandler` with ``/health``, ``/status``, ``/metrics`` and ``/``."""

    metrics: Metrics | None
    slots: int
    response_generator: Any

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self.handle_health_check()
        elif path == "/status":
            told = {"health": self._health(), "requests": self.ledger.last()}
            self._send(json.dumps(told).encode(), "application/json")
        elif path == "/metrics":
            self._tell_metrics()
        elif path == "/":
            content, policy = page()
            self._send(
                content,
                "text/html; charset=utf-8",
                {
                    "Content-Security-Policy": policy,
                    "Referrer-Policy": "no-referrer",
                    "X-Frame-Options": "DENY",
                },
            )
        else:
            self.refuse(RequestError(f"There is nothing at {path:.80}.", None, 404))

    def handle_health_check(self) -> None:
        health = self._health()
        if not self.guard.has_key(self.headers):
            health = {"status": health["status"]}
        status = 200 if health["status"] == "ok" else 503
        self._send(json.dumps(health).encode(), "application/json", status=status)

    def _health(self) -> dict[str, Any]:
        generator, ledger = self.response_generator, self.ledger
        status = generator.status
        idle = ledger.idle_seconds
        step = generator.seconds_since_step
        if idle is not None:
            step = min(step, idle)
            if status == "ok" and step > STALLED_SECONDS:
                status = "stalled"
        return {
            "status": status,
            "model": self.model,
            "slots": {"used": min(ledger.generating, self.slots), "of": self.slots},
            "waiting": ledger.waiting,
            "connections": {
                "open": len(self.server.connections),
                "of": self.limits.connections,
            },
            "generation": {
                "alive": generator.is_healthy and status != "stalled",
                "seconds_since_step": round(step, 3),
            },
        }

    def _tell_metrics(self) -> None:
        if self.metrics is None:
            self.refuse(RequestError(HOW_TO, None, 501))
            return
        self._send(*self.metrics.render())

    def _send(
        self,
        content: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
        status: int = 200,
    ) -> None:
        self.send_response(status)
        self._set_cors_headers()
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@functools.cache
def page() -> tuple[bytes, str]:
    """The status page, and a policy under which nothing else runs in it.

    Returns:
        tuple[bytes, str]: HTML, and the value of Content-Security-Policy.
    """
    content = resources.files(__package__).joinpath(_PAGE).read_bytes()
    (script,) = re.findall(rb"<script>(.*?)</script>", content, re.S)
    (style,) = re.findall(rb"<style>(.*?)</style>", content, re.S)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return content, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
