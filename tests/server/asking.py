"""Requests written by hand, byte for byte, to a server in this process."""

import json
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

SECONDS = 60
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is 2 + 3 + 4 - 1?"}]
HONEST = {"messages": MESSAGES, "thinking_budget": 2, "max_tokens": 20}


@dataclass
class Answer:
    """What came back: status, headers in lower case, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json()["error"]["message"]


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), SECONDS)


def read_answer(connection: socket.socket) -> Answer:
    answer = b""
    while data := connection.recv(1 << 16):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = (line.partition(": ") for line in lines)
    return Answer(
        int(line.split()[1]), {name.lower(): text for name, _, text in headers}, body
    )


def read_until(connection: socket.socket, text: bytes) -> bytes:
    """What comes up to some text and a little more; it has to come."""
    came = b""
    while text not in came:
        data = connection.recv(1 << 16)
        assert data, came
        came += data
    return came


def exchange(url: str, data: bytes) -> Answer:
    """The answer to these bytes."""
    with connect(url) as connection:
        connection.sendall(data)
        return read_answer(connection)


def request_of(
    method: str, path: str, body: bytes | None = None, **headers: str | None
) -> bytes:
    """A request's bytes; a header whose value is None is left out."""
    told = {"Host": "localhost"}
    if body is not None:
        told |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in told.items() if value is not None]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines])
    return head.encode("latin-1") + b"\r\n\r\n" + (body or b"")


def post(url: str, body: object = HONEST, path: str = CHAT, **headers) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(url, request_of("POST", path, data, **headers))


def get(url: str, path: str, **headers) -> Answer:
    return exchange(url, request_of("GET", path, **headers))
