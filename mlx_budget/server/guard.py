"""Who may ask, and for what: verdicts over a request's headers and fields.

Any web page that a user opens can send requests to a port of their machine, so a
request has to come from a program or from a page that is allowed to. Knows headers and
fields; nothing of sockets, and nothing of what a request is answered with.
"""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from .. import demo
from ..engine.fields import check_numbers, setting
from .errors import RequestError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:(?P<port>[0-9]{0,5}))?"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~ ,-]{0,1000}")
# What the template's caller decides, not the template: some read files or memory
# without end.
_NO_TEMPLATE_ARGUMENTS = (
    "chat_template",
    "conversation",
    "max_length",
    "padding",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)
# Fields that name a model, or a part of one, to be loaded.
_NAMES = ("model", "draft_model", "adapters")
# What is told to whom has no key: that the server lives, and a page without content.
OPEN_PATHS = ("/", "/health")


@dataclass(frozen=True)
class Access:
    """Who may ask, and for which models.

    Attributes:
        host: Name or address to listen at.
        port: To listen at; 0 for any that is free.
        allowed_origins: Of web pages that may ask, besides those of this machine.
        allowed_hosts: Names by which the server may be asked, besides its own.
        api_key: That a request must bring, if any.
        without_key: Whether no key is needed though other machines reach the server.
        only_model: Whether requests get no other model than the one that is served.
        model_folders: In which lie other models that requests may name.
    """

    GROUP: ClassVar[str] = "Access"

    host: str = setting("127.0.0.1", "Address.")
    port: int = setting(8080, "Port; 0 for any that is free.", least=0, most=65535)
    allowed_origins: tuple[str, ...] = setting(
        (),
        "Comma-separated origins of web pages that may ask, such as "
        "https://chat.example.com; * for all.",
        shown="pages of this machine",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Comma-separated names by which the server may be asked, such as "
        "host.docker.internal.",
        shown="those of this machine and --host",
    )
    api_key: str | None = setting(
        None,
        "Key that each request must bring. Others can see the options of a command: "
        "the environment variable MLX_BUDGET_API_KEY is safer.",
        variable="MLX_BUDGET_API_KEY",
        is_secret=True,
    )
    without_key: bool = setting(
        False,
        "Let everybody ask who reaches the server, where --host lets other machines "
        "reach it.",
        keyword="no_api_key",
    )
    only_model: bool = setting(
        False, "Serve no other model, and never ask the Hub for one."
    )
    model_folders: tuple[str, ...] = setting(
        (),
        "Comma-separated folders in which lie more models, and adapters, that requests "
        "may name.",
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("allowed_origins", "allowed_hosts", "model_folders"):
            value = getattr(self, name)
            texts = [value] if isinstance(value, str) else value
            object.__setattr__(self, name, tuple(filter(None, texts)))
        for origin in self.allowed_origins:
            if origin not in ("*", "null") and _origin(origin) is None:
                raise ValueError(
                    f"allowed_origins must be origins such as https://chat.example.com "
                    f"or *, not {origin!r}."
                )
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key is empty: is a variable not set?")
        if self.api_key is not None and self.without_key:
            raise ValueError("Give an API key or --no-api-key, not both.")

    def check_reachable(self, address: str) -> None:
        """Checks that who reaches the server may ask.

        Args:
            address (str): That it is going to listen at.

        Raises:
            ValueError: If other machines reach it, and nothing is said of a key.
        """
        if not (_is_loopback(address) or self.api_key or self.without_key):
            raise ValueError(
                f"Other machines can reach {self.host}: set the environment variable "
                "MLX_BUDGET_API_KEY (or --api-key), or let everybody ask with "
                "--no-api-key."
            )


class Guard:
    """Says of each request whether it may be answered.

    Args:
        access (Access): Who may ask.
        address (str): That the server listens at.
    """

    def __init__(self, access: Access, address: str = "127.0.0.1"):
        self._access = access
        self._is_local = _is_loopback(address)
        self._is_for_all = "*" in access.allowed_origins
        origins = map(_origin, access.allowed_origins)
        self._origins = {origin for origin in origins if origin is not None}
        names = [*access.allowed_hosts, access.host]
        names += [host for _, host, _ in self._origins]
        if not self._is_local:
            own = socket.gethostname()
            names += [own, f"{own.partition('.')[0]}.local"]
        self._hosts = {_plain(name) for name in names}
        self._key = None if access.api_key is None else _digest(access.api_key)
        self.only_model = access.only_model

    def check(self, headers: Message, path: str, is_preflight: bool = False) -> None:
        """Checks where a request comes from.

        Args:
            headers (Message): Of the request.
            path (str): That it asks for.
            is_preflight (bool): Whether a browser only asks whether a page may ask.

        Raises:
            RequestError: With the way out.
        """
        self._check_host(headers.get_all("Host", []))
        self._check_origin(headers)
        if not is_preflight and path not in OPEN_PATHS and not self.has_key(headers):
            raise RequestError(
                "The API key is missing or wrong: send it as Authorization: Bearer KEY "
                "or x-api-key: KEY.",
                status=401,
            )

    def has_key(self, headers: Message) -> bool:
        """Whether a request brings the key, or needs none."""
        if self._key is None:
            return True
        given = headers.get_all("x-api-key", [])
        for value in headers.get_all("Authorization", []):
            scheme, _, credentials = value.partition(" ")
            if scheme.lower() == "bearer":
                given.append(credentials)
        # Of equal length, and compared in full, whichever came.
        right = [hmac.compare_digest(_digest(key.strip()), self._key) for key in given]
        return any(right)

    def cross_origin_headers(self, headers: Message) -> dict[str, str]:
        """What tells a browser that the page of a checked request may read the answer.

        Args:
            headers (Message): Of the request.
        """
        origin, host = _value(headers, "Origin"), _value(headers, "Host") or ""
        found = _HOST.fullmatch(host)
        told: dict[str, str] = {"Vary": "Origin"}
        if origin is None or found is None or not self._is_called(found["name"]):
            return told
        if not self._is_allowed(origin, host):
            return told
        told["Access-Control-Allow-Origin"] = origin
        method = _value(headers, "Access-Control-Request-Method")
        if method is None:
            return told
        asked = _value(headers, "Access-Control-Request-Headers") or ""
        if method in ("GET", "POST", "DELETE") and _HEADER_NAMES.fullmatch(asked):
            told["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
            told["Access-Control-Allow-Headers"] = asked
            told["Access-Control-Max-Age"] = "600"
        if headers.get("Access-Control-Request-Private-Network") == "true":
            told["Access-Control-Allow-Private-Network"] = "true"
        return told

    def check_fields(self, body: Mapping[str, Any], own_names: set[str]) -> None:
        """Checks the fields by which a request could reach beyond its own reply.

        Args:
            body (Mapping): Of the request.
            own_names (set[str]): By which the served model may be called.

        Raises:
            RequestError: Naming the field.
        """
        if body.get("chat_template") is not None:
            raise _no_template("chat_template")
        arguments: Any = body.get("chat_template_kwargs")
        for name in _NO_TEMPLATE_ARGUMENTS:
            if not isinstance(arguments, dict):
                break
            if arguments.get(name) is not None:
                raise _no_template(f"chat_template_kwargs.{name}")
        for field in _NAMES:
            asked = body.get(field)
            if isinstance(asked, str) and asked not in own_names | {"default_model"}:
                self._check_name(field, asked)

    def _check_host(self, hosts: list[str]) -> None:
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None:
            raise RequestError("The request must have one Host header, name:port.")
        name = _plain(found["name"])
        if self._is_called(name):
            return
        raise RequestError(
            f"This server is not called {name}: start it with --allowed-hosts {name} "
            "if it is to be asked by that name.",
            status=403,
        )

    def _is_called(self, name: str) -> bool:
        name = _plain(name)
        if name in self._hosts or _is_loopback(name):
            return True
        # Whoever asks by a number was not sent here by a name.
        return not self._is_local and _address(name) is not None

    def _check_origin(self, headers: Message) -> None:
        for origin in headers.get_all("Origin", []):
            if not self._is_allowed(origin, headers.get("Host", "")):
                shown = f"of {origin} " if _origin(origin) else ""
                raise RequestError(
                    f"Web pages {shown}may not ask here: start the server with "
                    "--allowed-origins to let them.",
                    status=403,
                )

    def _is_allowed(self, origin: str, host: str) -> bool:
        if self._is_for_all or origin in self._access.allowed_origins:
            return True
        if (asked := _origin(origin)) is None:
            return False
        scheme, name, _ = asked
        # The server's own page, or one of another program of this machine.
        is_own = asked == _origin(f"{scheme}://{host}")
        return asked in self._origins or is_own or _is_loopback(name)

    def _check_name(self, field: str, name: str) -> None:
        if self._access.only_model:
            raise RequestError(
                f"{field}: {_short(name)} is not served here: this server has one "
                "model (--only-model).",
                field,
                404,
            )
        try:
            # A name of the Hub may be that of a folder here as well, which is loaded.
            is_folder = name != demo.NAME and Path(name).exists()
            place = Path(name).resolve()
        except (OSError, ValueError):
            is_folder, place = False, None
        if ".." not in name and not is_folder and _HUB_NAME.fullmatch(name):
            return
        roots = (Path(folder).resolve() for folder in self._access.model_folders)
        if place is not None and any(map(place.is_relative_to, roots)):
            return
        raise RequestError(
            f"{field}: {_short(name)} is no name on the Hub, and no folder in one that "
            "the server was started with (--model-folders).",
            field,
        )


def check_content_type(headers: Message) -> None:
    """Checks that a request's body says that it is JSON, which no plain form can.

    Raises:
        RequestError: If it does not.
    """
    kind, _, rest = headers.get("Content-Type", "").partition(";")
    charset = [p.strip().lower() for p in rest.split(";") if "charset" in p.lower()]
    allowed = ("charset=utf-8", 'charset="utf-8"', "charset=utf8")
    if kind.strip().lower() != "application/json" or not set(charset) <= set(allowed):
        raise RequestError(
            "The request's body must be JSON, with Content-Type: application/json.",
            status=415,
        )


def _value(headers: Message, name: str) -> str | None:
    value = headers.get(name)
    return None if value is None else str(value)


def _no_template(field: str) -> RequestError:
    return RequestError(
        f"{field} is not taken from requests: the server's chat template is set when "
        "it is started (--chat-template).",
        field,
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _plain(name: str) -> str:
    """A host's name as it is compared."""
    return name.strip("[]").rstrip(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(_plain(name))
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    name = _plain(name)
    address = _address(name)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address is not None:
        return address.is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _origin(text: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of an origin, or None if it is not one."""
    try:
        parts = urlsplit(text)
        scheme, port = parts.scheme.lower(), parts.port
    except ValueError:
        return None
    found = _HOST.fullmatch(parts.netloc)
    if not scheme or found is None or parts.path not in ("", "/") or parts.query:
        return None
    return scheme, _plain(found["name"]), port or _DEFAULT_PORTS.get(scheme)
