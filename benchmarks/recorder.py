"""Writes down what passes between clients and a server. Knows HTTP alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECONDS = 180


@contextmanager
def recording(port: int, requests: list[dict[str, Any]]) -> Iterator[str]:
    """Forwards what comes to a port, and writes it down, as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
            left_out = ("host", "connection", "accept-encoding")
            names = [name for name in self.headers if name.lower() not in left_out]
            headers = {name: self.headers[name] for name in names}
            server.request(self.command, self.path, body, headers)
            response = server.getresponse()
            self.send_response(response.status)
            for name, value in response.getheaders():
                self.send_header(name, value)
            self.end_headers()
            found: dict[str, Any] = {
                "path": f"{self.command} {self.path}",
                "headers": dict(self.headers),
                "body": body.decode(),
                "status": response.status,
                "reply": "",
            }
            requests.append(found)
            reply = b""
            while data := response.read1(1 << 16):
                # Written down before the client has it, and may go on.
                reply += data
                found["reply"] = reply.decode(errors="replace")
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = forward

        def log_message(self, format: str, *args: Any) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()
