"""What a server tells of itself: log lines, counts, health; and what it never tells."""

import json
import logging
import queue
import re
import sys
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from asking import (
    CHAT,
    HONEST,
    MESSAGES,
    SECONDS,
    connect,
    get,
    post,
    read_until,
    request_of,
)
from mlx_budget.installing import install_command
from mlx_budget.server import pages, running
from mlx_budget.server.ledger import Ledger, Record, logger
from mlx_budget.server.limits import Limits
from mlx_budget.server.logs import JsonFormatter, set_up_logging
from mlx_budget.server.metrics import Metrics, make_metrics
from served import serving

SECRET = "my very own secret question"
ENDLESS = {
    "messages": MESSAGES,
    "stream": True,
    "max_tokens": 2000,
    "logit_bias": {str(token): 100 for token in range(20, 30)},
}


@pytest.fixture(scope="module")
def url():
    with running() as url:
        yield url


@pytest.fixture
def lines(monkeypatch):
    """What the server logs of requests, as it comes."""
    found = queue.SimpleQueue()
    monkeypatch.setattr(logger, "handle", found.put)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.manager._clear_cache()
    yield found
    logger.manager._clear_cache()


def last(url: str) -> dict:
    return get(url, "/status").json()["requests"][0]


def test_a_reply_is_one_line(url, lines):
    answer = post(url, {**HONEST, "max_tokens": 60}).json()
    line = lines.get(timeout=SECONDS)
    assert line.levelno == logging.INFO
    told = line.request
    usage = answer["usage"]
    assert told["interface"] == "chat"
    assert told["status"] == 200
    assert (told["budget"], told["source"]) == (2, "thinking_budget")
    assert told["closed_by"] == answer["choices"][0]["thinking"]["closed_by"]
    assert told["prompt_tokens"] == usage["prompt_tokens"]
    assert told["tokens"] == usage["completion_tokens"]
    details = usage["completion_tokens_details"]
    assert told["thinking_tokens"] == details["reasoning_tokens"]
    assert told["answer_tokens"] == details["answer_tokens"]
    assert told["finish_reason"] == answer["choices"][0]["finish_reason"]
    assert 0 < told["first_token_seconds"] <= told["seconds"]
    assert told["tokens_per_second"] > 0
    form = (
        r"chat, 200, budget 2 \(thinking_budget\), thinking \d+, after close \d+, "
        r"answer \d+, closed by budget, [\d.]+ tokens/s, \w+"
    )
    assert re.fullmatch(form, line.getMessage())


@pytest.mark.parametrize(
    ("path", "body", "interface", "source"),
    [
        (CHAT, {"thinking_budget": 5}, "chat", "thinking_budget"),
        (CHAT, {"reasoning": {"max_tokens": 5}}, "chat", "reasoning.max_tokens"),
        (CHAT, {"reasoning_effort": "low"}, "chat", "reasoning_effort"),
        (CHAT, {}, "chat", "server"),
        ("/v1/messages", {}, "messages", "server"),
        (
            "/v1/messages",
            {"thinking": {"type": "enabled", "budget_tokens": 5}},
            "messages",
            "thinking.budget_tokens",
        ),
    ],
)
def test_it_says_what_set_the_budget(url, path, body, interface, source):
    answer = post(url, {"messages": MESSAGES, "max_tokens": 20, **body}, path)
    assert answer.status == 200
    told = last(url)
    assert (told["interface"], told["source"]) == (interface, source)


def test_a_refusal_says_why(url, lines):
    for body, origin, status, word in (
        ({"thinking_budget": "many"}, None, 400, "thinking_budget"),
        ({"top_k": -1}, None, 400, "top_k"),
        ({"model": "../x"}, None, 400, "model"),
        ({}, "https://evil.example", 403, "--allowed-origins"),
    ):
        post(url, {**HONEST, **body}, Origin=origin)
        told = lines.get(timeout=SECONDS).request
        assert told["status"] == status
        assert word in told["reason"]


def test_what_was_asked_and_the_key_are_never_told():
    key = "a-key-nobody-sees"
    options = ("--log-level", "DEBUG", "--api-key", key)
    with serving(*options) as server:
        messages = [{"role": "user", "content": SECRET}]
        body = {"messages": messages, "max_tokens": 8}
        told = {"Authorization": f"Bearer {key}"}
        assert post(server.url, body, **told).status == 200
        assert post(server.url, {**body, "stream": True}, **told).status == 200
        assert post(server.url, {**body, "top_k": -1}, **told).status == 400
        assert post(server.url, json.dumps(body)[:-1].encode(), **told).status == 400
        assert post(server.url, body, Authorization="Bearer wrong-key").status == 401
        seen = get(server.url, "/status", **told).body.decode()
        assert server.stop() == 0
    log = "".join(server.lines)
    assert "chat, 200" in log
    assert "chat, 401" in log
    for text in (log, seen):
        assert SECRET not in text
        assert key not in text
        assert "wrong-key" not in text


def test_a_log_of_json_is_one_object_a_line():
    with serving("--log-format", "json") as server:
        post(server.url)
        assert server.stop() == 0
    found = [json.loads(line) for line in server.lines if line.startswith("{")]
    (told,) = [line for line in found if "interface" in line]
    assert told["level"] == "INFO"
    assert told["message"].startswith("chat, 200, budget 2 (thinking_budget)")
    assert told["thinking_tokens"] <= 2


def test_a_traceback_is_told_in_json():
    try:
        raise ValueError("no")
    except ValueError:
        failure = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "Failed.", (), failure)
    assert "ValueError: no" in json.loads(JsonFormatter().format(record))["traceback"]


def test_of_mlx_lms_server_only_warnings_are_shown(monkeypatch, capsys):
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    set_up_logging("DEBUG", "text")
    (handler,) = logging.root.handlers
    for place, level, is_shown in (
        ("/a/mlx_lm/server.py", logging.INFO, False),
        ("/a/mlx_lm/server.py", logging.WARNING, True),
        ("/a/mlx_budget/server/run.py", logging.DEBUG, True),
    ):
        record = logging.LogRecord("x", level, place, 1, "text", (), None)
        assert bool(handler.filter(record)) == is_shown


def samples(url: str) -> dict[str, float]:
    answer = get(url, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        f"{s.name} {' '.join(s.labels.values())}".strip(): s.value
        for family in families
        for s in family.samples
    }


def test_metrics_add_up():
    with running() as url:
        one = post(url).json()
        two = post(url, {**HONEST, "thinking_budget": None, "max_tokens": 40}).json()
        assert post(url, {**HONEST, "top_k": -1}).status == 400
        found = samples(url)
    details = [x["usage"]["completion_tokens_details"] for x in (one, two)]
    assert found["mlx_budget_requests_total chat 200"] == 2
    assert found["mlx_budget_requests_total chat 400"] == 1
    for kind, name in (
        ("thinking", "reasoning_tokens"),
        ("answer", "answer_tokens"),
        ("after_close", "after_close_tokens"),
    ):
        total = found[f"mlx_budget_tokens_total {kind}"]
        assert total == sum(d[name] for d in details)
    prompts = sum(x["usage"]["prompt_tokens"] for x in (one, two))
    assert found["mlx_budget_tokens_total prompt"] == prompts
    assert found["mlx_budget_time_to_first_token_seconds_count"] == 2
    assert found["mlx_budget_budget_used_ratio_count"] == 1
    used = details[0]["reasoning_tokens"] / 2
    assert found["mlx_budget_budget_used_ratio_sum"] == pytest.approx(used)
    closed = {k: v for k, v in found.items() if k.startswith("mlx_budget_thinking_cl")}
    assert sum(v for k, v in closed.items() if "created" not in k) == 2
    assert found["mlx_budget_requests_generating"] == 0
    assert found["mlx_budget_slots"] == 32


def test_without_the_library_metrics_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert make_metrics(Ledger(), 1) is None
    with running() as url:
        answer = get(url, "/metrics")
        assert answer.status == 501
        assert install_command("serve") in answer.message
        assert post(url).status == 200


def test_health_tells_of_slots_and_of_the_thread(url):
    health = get(url, "/health").json()
    assert health["status"] == "ok"
    assert health["model"] == "demo"
    assert health["slots"] == {"used": 0, "of": 32}
    assert health["waiting"] == 0
    assert health["generation"]["alive"]
    assert health["generation"]["seconds_since_step"] < 10
    with connect(url) as connection:
        connection.sendall(request_of("POST", CHAT, json.dumps(ENDLESS).encode()))
        read_until(connection, b"data: ")
        assert get(url, "/health").json()["slots"]["used"] == 1
        assert samples(url)["mlx_budget_requests_generating"] == 1
    with running(api_key="k") as locked:
        assert get(locked, "/health").json() == {"status": "ok"}
        assert get(locked, "/health", x_api_key="k").json()["model"] == "demo"


@pytest.mark.parametrize(
    ("status", "waits", "seconds", "told", "is_alive"),
    [
        ("ok", True, pages.STALLED_SECONDS + 1, "stalled", False),
        ("ok", True, 1, "ok", True),
        ("ok", False, pages.STALLED_SECONDS + 1, "ok", True),
        ("loading", True, pages.STALLED_SECONDS + 1, "loading", True),
    ],
)
def test_health_tells_of_a_thread_that_moves_no_more(
    monkeypatch, status, waits, seconds, told, is_alive
):
    """Where nobody waits nothing has to move."""
    ledger = Ledger()
    if waits:
        ledger.open().wait()
    monkeypatch.setattr(Record, "idle_seconds", seconds)
    generator = SimpleNamespace(
        status=status, seconds_since_step=seconds, is_healthy=True
    )
    handler = SimpleNamespace(
        response_generator=generator,
        ledger=ledger,
        model="demo",
        slots=2,
        limits=Limits(),
        server=SimpleNamespace(connections=[1]),
    )
    health = pages.PagesHandler._health(handler)
    assert health["status"] == told
    assert health["generation"]["alive"] == is_alive
    assert health["waiting"] == waits


def test_a_client_that_hangs_up_is_told_of(url, lines):
    with connect(url) as connection:
        connection.sendall(request_of("POST", CHAT, json.dumps(ENDLESS).encode()))
        connection.recv(1 << 16)
    told = lines.get(timeout=SECONDS).request
    assert told["reason"] == "the client has hung up"


def test_a_ledger_keeps_the_last_and_no_more():
    ledger = Ledger()
    for number in range(150):
        record = ledger.open()
        record.interface, record.tokens = "chat", number
        ledger.close(record)
    told = ledger.last()
    assert len(told) == 100
    assert told[0]["tokens"] == 149
    assert ledger.waiting == ledger.generating == 0


def test_a_ledger_counts_who_waits_and_who_is_generated():
    ledger = Ledger()
    waiting, generating = ledger.open(), ledger.open()
    ledger.open()
    waiting.wait()
    generating.wait()
    assert (ledger.waiting, ledger.generating) == (2, 0)
    generating.take(None)
    assert (ledger.waiting, ledger.generating) == (1, 1)
    assert ledger.idle_seconds < 10
    ledger.close(generating)
    ledger.close(waiting)
    assert (ledger.waiting, ledger.generating) == (0, 0)
    assert ledger.idle_seconds is None


def test_a_reason_is_one_short_line():
    record = Record()
    record.fail("one\ntwo\r\n" + "x" * 1000)
    assert record.reason.startswith("one two xxx")
    assert len(record.reason) == 200


def test_metrics_of_a_model_that_does_not_think():
    ledger = Ledger()
    metrics = Metrics(ledger, 1)
    record = Record("chat", 200)
    record.take("stop")
    metrics.observe(record)
    assert b'mlx_budget_tokens_total{kind="answer"} 1.0' in metrics.render()[0]
