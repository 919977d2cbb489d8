"""Counts of requests in Prometheus' format, by its own client library if it is there.

Knows records of requests; nothing of HTTP.
"""

from collections.abc import Callable
from typing import Any

from ..installing import install_command
from .ledger import Ledger, Record

HOW_TO = f"/metrics needs Prometheus' client library: {install_command('serve')}"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


class Metrics:
    """The counts of one server.

    Args:
        ledger (Ledger): That tells of its requests.
        slots (int): Replies that it generates at a time.

    Raises:
        ImportError: If Prometheus' client library is not there.
    """

    def __init__(self, ledger: Ledger, slots: int):
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry()
        made: dict[str, Any] = {"namespace": "mlx_budget", "registry": self.registry}
        self._requests = prometheus.Counter(
            "requests", "Requests, by interface and status.", ["api", "status"], **made
        )
        self._tokens = prometheus.Counter(
            "tokens", "Tokens, by what they are.", ["kind"], **made
        )
        self._closed_by = prometheus.Counter(
            "thinking_closed", "Replies, by what closed their thinking.", ["by"], **made
        )
        self._first = prometheus.Histogram(
            "time_to_first_token_seconds",
            "From when a request came to its first token.",
            buckets=_SECONDS,
            **made,
        )
        self._used = prometheus.Histogram(
            "budget_used_ratio",
            "Tokens of thinking over the budget, where there is one.",
            buckets=_SHARES,
            **made,
        )
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "requests_waiting": (
                "Requests that wait for their first token.",
                lambda: ledger.waiting,
            ),
            "requests_generating": (
                "Requests that are generated.",
                lambda: ledger.generating,
            ),
            "slots": ("Replies that are generated at a time.", lambda: slots),
        }
        for name, (what, count) in gauges.items():
            prometheus.Gauge(name, what, **made).set_function(count)

    def observe(self, record: Record) -> None:
        """Counts a request that is over."""
        self._requests.labels(record.interface, str(record.status or "none")).inc()
        self._tokens.labels("prompt").inc(record.prompt_tokens)
        if record.first_token_seconds is not None:
            self._first.observe(record.first_token_seconds)
        if (thinking := record.thinking) is None:
            self._tokens.labels("answer").inc(record.tokens)
            return
        for kind in ("thinking", "after_close", "answer"):
            self._tokens.labels(kind).inc(thinking[f"{kind}_tokens"])
        self._closed_by.labels(thinking["closed_by"] or "nothing").inc()
        if thinking["budget"]:
            self._used.observe(thinking["thinking_tokens"] / thinking["budget"])

    def render(self) -> tuple[bytes, str]:
        """The counts as text, and the type of that."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def make_metrics(ledger: Ledger, slots: int) -> Metrics | None:
    """The counts of a server, told of by its ledger; None without the library."""
    try:
        metrics = Metrics(ledger, slots)
    except ImportError:
        return None
    ledger.observe = metrics.observe
    return metrics
