"""Listens for connections, as many as may be. Knows sockets; nothing of requests."""

import logging
import socket
import sys
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from .guard import Access
from .limits import Connections

_FULL = (
    b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\n"
    b"Content-Type: text/plain\r\n\r\nAll connections are taken.\n"
)


class Listener(ThreadingHTTPServer):
    """An HTTP server that is bound to its address when it is made.

    Args:
        access (Access): With the address.
        make_handler (Callable): Makes the handler of a connection. It may be set later,
            as ``RequestHandlerClass``.
        most (int): Connections at a time.

    Raises:
        ValueError: If the address is in use or is none of this machine, or other
            machines reach it and need no key.
    """

    # Many clients may come at the same moment.
    request_queue_size = 1024

    def __init__(self, access: Access, make_handler: Callable[..., Any], most: int):
        self.connections = Connections(most)
        try:
            found = socket.getaddrinfo(
                access.host,
                access.port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
        except (OSError, UnicodeError):
            raise ValueError(
                f"There is no address {access.host}: give another with --host."
            ) from None
        self.address_family, _, _, _, address = found[0]
        access.check_reachable(str(address[0]))
        try:
            super().__init__(address[:2], make_handler)  # type: ignore[arg-type]
        except OSError as e:
            why = (e.strerror or str(e)).lower()
            raise ValueError(
                f"Port {access.port} of {access.host} cannot be had ({why}): give "
                "another with --port, or 0 for any that is free."
            ) from None

    @property
    def url(self) -> str:
        """The address, as a client asks it."""
        host, port = self.server_address[:2]
        text = str(host)
        return f"http://{f'[{text}]' if ':' in text else text}:{port}"

    def server_bind(self) -> None:
        # Not http.server's, which looks up the machine's name: that may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.take(request):
            super().process_request(request, client_address)
            return
        try:
            request.settimeout(0)
            request.send(_FULL)
        except OSError:
            pass
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        self.connections.drop(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            logging.info("A client has hung up.")
        else:
            logging.exception("A request failed.")
