"""What a page or a program of ill will may try: refused, and the next is served."""

import json
import resource
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from asking import (
    CHAT,
    HONEST,
    MESSAGES,
    Answer,
    connect,
    exchange,
    get,
    post,
    read_answer,
    read_until,
    request_of,
)
from mlx_budget.server import running
from mlx_budget.server.limits import MOST_DEPTH, MOST_VALUES, check_json
from mlx_budget.server.reading import MOST_HEAD

EVIL = "https://evil.example"
PATHS = (CHAT, "/v1/completions", "/v1/messages", "/v1/responses")
# Seconds in which a request is answered while others do what they like: one is the
# promise, and this machine may be busy.
AT_ONCE = 10


@pytest.fixture(scope="module")
def url():
    with running(header_timeout=2, body_timeout=2) as url:
        yield url


def assert_serving(url: str) -> None:
    answer = post(url)
    assert answer.status == 200
    assert answer.json()["choices"][0]["thinking"]["budget"] == 2


def assert_refused(url: str, answer: Answer, status: int, *words: str) -> None:
    assert answer.status == status
    for word in words:
        assert word in answer.message
    assert "access-control-allow-origin" not in answer.headers
    assert_serving(url)


@pytest.mark.parametrize("path", PATHS)
def test_dns_rebinding(url, path):
    answer = post(
        url, path=path, Host="evil.example:8080", Origin="http://evil.example:8080"
    )
    assert_refused(url, answer, 403, "--allowed-hosts")


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_page(url, path):
    for origin in (EVIL, "null", "http://localhost.evil.example"):
        assert_refused(
            url, post(url, path=path, Origin=origin), 403, "--allowed-origins"
        )
    headers = {"Access_Control_Request_Method": "POST", "Origin": EVIL}
    answer = exchange(url, request_of("OPTIONS", path, **headers))
    assert_refused(url, answer, 403)


def test_a_page_of_this_machine_may_ask_and_read_the_answer(url):
    origin = "http://localhost:3000"
    headers = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type",
    }
    asked = exchange(url, request_of("OPTIONS", CHAT, Origin=origin, **headers))
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    for answer in (asked, post(url, Origin=origin), post(url, b"{", Origin=origin)):
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", None]
)
def test_a_form_that_any_page_can_send(url, path, kind):
    answer = post(url, path=path, Content_Type=kind)
    assert_refused(url, answer, 415, "application/json")


def test_anthropics_interface_is_told_in_its_own_form(url):
    answer = post(url, path="/v1/messages?beta=true", Origin=EVIL)
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "permission_error"


BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "body",
    [
        {"chat_template": BOMB},
        {"chat_template_kwargs": {"chat_template": BOMB}},
        {"chat_template_kwargs": {"padding": "max_length", "max_length": 10**9}},
        {"model": "../../../etc"},
        {"model": "/etc/passwd"},
        {"model": "..%2f..%2fetc"},
        {"adapters": "/etc"},
        {"draft_model": "~/x"},
    ],
)
def test_a_template_bomb_and_a_path_that_leads_out(url, body):
    (field,) = body
    assert_refused(url, post(url, {**HONEST, **body}), 400, field)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a": ' * 5_000 + b"1" + b"}" * 5_000,
        b'{"messages": "\xff\xfe"}',
        b"\x00",
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5_000 + b"}",
        b'{"seed": -' + b"9" * 5_000 + b"}",
        b'{"max_tokens": 1' + b"0" * 5_000 + b".5e99999}",
        b'{"temperature": NaN}',
    ],
)
def test_deep_json_odd_bytes_and_huge_numbers(url, body):
    answer = post(url, body)
    assert_refused(url, answer, 400, "not valid JSON")
    assert len(answer.message) < 300


def test_json_of_too_many_values():
    """That Python would make hundreds of bytes of each."""
    for text in (b"[],", b"{},", b"1,", b'"",', b'"ab",'):
        with pytest.raises(ValueError, match=f"{MOST_VALUES:,} values"):
            check_json(b"[" + text * (MOST_VALUES + 1) + b"1]")
    # Text may say what it likes.
    check_json(json.dumps({"a": '[{",\\"\\\\' * MOST_VALUES}).encode())
    nested = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    check_json(nested)
    with pytest.raises(ValueError, match="nested"):
        check_json(b"[" + nested + b"]")


def raw(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


START = (b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost")
JSON = b"Content-Type: application/json"
BODY = json.dumps(HONEST).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (raw(*START, JSON, LENGTH, LENGTH, body=BODY), 400),
        (raw(*START, JSON, LENGTH, b"content-length: 0", body=BODY), 400),
        (raw(*START, JSON, b"Content-Length: 5, 5", body=BODY), 400),
        (raw(*START, JSON, LENGTH, CHUNKED, body=b"0\r\n\r\n"), 400),
        (raw(*START, JSON, CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 501),
        (raw(*START, JSON, b"Transfer-Encoding: gzip, chunked"), 501),
        (raw(*START, JSON, b"Transfer-Encoding: xchunked"), 501),
        (raw(*START, JSON, b"Transfer-Encoding : chunked"), 400),
        (raw(*START, JSON, b"Content-Length: +5"), 400),
        (raw(*START, JSON, b"Content-Length: 5e1"), 400),
        (raw(*START, JSON, CHUNKED, body=b"zz\r\n"), 400),
        (raw(*START, JSON, CHUNKED, body=b"ffffffffffffffffffffff\r\n"), 400),
        (raw(*START, JSON, LENGTH, b" folded: x", b"\tmore"), 400),
        (raw(*START, JSON), 411),
        (raw(*START, b"Host: evil.example", JSON, LENGTH, body=BODY), 400),
        (raw(START[0], JSON, LENGTH, body=BODY), 400),
        (raw(b"GET /health HTTP/1.0"), 400),
        (raw(b"GET http://evil.example/ HTTP/1.1", START[1]), 400),
        (raw(b"GET /health HTTP/3.1", START[1]), 505),
        (raw(b"GET /health"), 400),
        (raw(b"TRACE / HTTP/1.1", START[1]), 405),
        (raw(b"PUT / HTTP/1.1", START[1]), 405),
        (raw(b"DELETE / HTTP/1.1", START[1]), 404),
        (raw(b"GET /health HTTP/1.1", START[1], b"A: \x00"), 400),
        (raw(b"GET /\xff HTTP/1.1", START[1]), 400),
        (raw(b"GET /health HTTP/1.1", START[1], b"A: " + b"x" * MOST_HEAD), 431),
        (raw(b"GET /health HTTP/1.1", START[1], *[b"A: x"] * 10_000), 431),
        (raw(b"GET /" + b"x" * MOST_HEAD + b" HTTP/1.1", START[1]), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
def test_requests_that_two_programs_could_read_in_two_ways(url, data, status):
    assert_refused(url, exchange(url, data), status)


def test_a_second_request_on_a_connection_is_not_read(url):
    smuggled = request_of("GET", "/v1/models")
    answer = exchange(url, request_of("POST", CHAT, BODY) + smuggled)
    assert answer.status == 200
    assert b"HTTP/1.0" not in answer.body
    assert_serving(url)


def test_a_body_in_chunks_is_read_and_has_the_same_limits(url):
    pieces = b"".join(b"%x\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    whole = exchange(url, raw(*START, JSON, CHUNKED, body=pieces + b"0\r\n\r\n"))
    assert whole.status == 200
    with running(max_body_bytes=1000) as small:
        piece = b"%x\r\n%b\r\n" % (600, b" " * 600)
        answer = exchange(small, raw(*START, JSON, CHUNKED, body=piece * 9))
        assert_refused(small, answer, 413, "1,000")
        assert_refused(small, post(small, b" " * 1001), 413, "1,001 bytes")
        assert post(small, b"{" + b" " * 998 + b"}").status == 400


def test_a_client_that_waits_to_be_asked_for_its_body(url):
    with connect(url) as connection:
        connection.sendall(
            request_of(
                "POST", CHAT, b"", Content_Length=str(len(BODY)), Expect="100-continue"
            )
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_answer(connection).status == 200
    # One that is refused is not asked.
    headers = {"Content_Length": "9", "Expect": "100-continue", "Origin": EVIL}
    answer = exchange(url, request_of("POST", CHAT, b"", **headers))
    assert_refused(url, answer, 403)


def test_what_does_not_come_in_time(url):
    for data, what in (
        (b"POST /v1", "headers"),
        (request_of("POST", CHAT, b"", Content_Length="9"), "body"),
    ):
        answer = exchange(url, data)
        assert_refused(url, answer, 408, what)


def test_a_body_that_is_cut_off(url):
    with connect(url) as connection:
        connection.sendall(request_of("POST", CHAT, b"{", Content_Length="9"))
        connection.shutdown(socket.SHUT_WR)
        assert_refused(url, read_answer(connection), 400)


def test_a_key(tmp_path):
    with running(api_key="secret") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x_api_key": ""}):
            answer = post(url, **headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert get(url, "/v1/models", **headers).status == 401
        for headers in ({"Authorization": "Bearer secret"}, {"x_api_key": "secret"}):
            assert post(url, **headers).status == 200
            assert get(url, "/v1/models", **headers).status == 200
        assert get(url, "/health").status == 200
        answer = post(url, path="/v1/messages")
        assert answer.json()["error"]["type"] == "authentication_error"


def test_one_model_alone():
    assert not constants.HF_HUB_OFFLINE
    with running(only_model=True) as url:
        assert constants.HF_HUB_OFFLINE
        answer = post(url, {**HONEST, "model": "mlx-community/other"})
        assert_refused(url, answer, 404, "mlx-community/other", "--only-model")
        assert [m["id"] for m in get(url, "/v1/models").json()["data"]] == ["demo"]
        assert post(url, {**HONEST, "model": "demo"}).status == 200
    assert not constants.HF_HUB_OFFLINE


class Slow(threading.Thread):
    """Sends a byte of its headers now and then, over many connections."""

    def __init__(self, connections: list[socket.socket]):
        super().__init__()
        self._connections = connections
        self.is_over = threading.Event()
        self.closed: set[int] = set()

    def run(self) -> None:
        while not self.is_over.wait(0.2):
            for i, connection in enumerate(self._connections):
                try:
                    connection.send(b"x")
                except OSError:
                    self.closed.add(i)


def timed_answer(url: str) -> float:
    begin = time.monotonic()
    assert_serving(url)
    return time.monotonic() - begin


def test_two_hundred_slow_clients():
    with running(header_timeout=3, max_connections=100) as url:
        timed_answer(url)
        slow = [connect(url) for _ in range(200)]
        for connection in slow:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nA: "
            )
        thread = Slow(slow)
        thread.start()
        try:
            assert timed_answer(url) < AT_ONCE
            # Whoever drips on is told to leave when the time for the whole is over.
            assert read_answer(slow[-1]).status == 408
            assert timed_answer(url) < AT_ONCE
        finally:
            thread.is_over.set()
            thread.join()
            for connection in slow:
                connection.close()


def test_two_thousand_idle_connections():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    count = min(2000, wanted - 600)
    idle = []
    try:
        with running(header_timeout=60) as url:
            timed_answer(url)
            idle = [connect(url) for _ in range(count)]
            assert timed_answer(url) < AT_ONCE
            # The oldest have given way.
            assert idle[0].recv(1) == b""
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_all_are_being_answered_others_are_told_to_come_again():
    with running(max_connections=1) as url, connect(url) as first:
        body = {"messages": MESSAGES, "stream": True, "max_tokens": 2000}
        body["logit_bias"] = {str(token): 100 for token in range(20, 30)}
        first.sendall(request_of("POST", CHAT, json.dumps(body).encode()))
        read_until(first, b"data: ")
        assert get(url, "/health").status == 503
        first.close()
        begin = time.monotonic()
        while get(url, "/health").status == 503:
            assert time.monotonic() - begin < AT_ONCE
        assert_serving(url)
