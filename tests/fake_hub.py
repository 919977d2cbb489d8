"""A small Hugging Face Hub on loopback, for tests that run the real client against it.

It knows nothing about model formats, LFS or Xet storage, private repositories or git
history: a repository is a set of named revisions, each a dict of paths and bytes. A
dataset is a repository named "datasets/owner/name", as in its address on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

Tree = dict[str, bytes]

_REPO = r"(?P<repo>(?:datasets/)?[^/]+(?:/[^/]+)?)"
_VERB = r"(?P<verb>revision|tree|preupload|commit)"
_KIND = r"(?:models/|(?=datasets/))"
_API = re.compile(rf"/api/{_KIND}{_REPO}(?:/{_VERB}/(?P<revision>[^/]+))?")
_FILE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class Request(NamedTuple):
    """One request received: the method, and the path without its query."""

    method: str
    path: str


class _Cut(NamedTuple):
    nbytes: int
    times: int | None
    reset: bool


class _Refusal(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status


class FakeHub:
    """A Hub that serves folders, takes uploads, and records both.

    Use it as a context manager. Folders are read when they are added. After the `with`
    its address refuses connections: what a client without a network meets.

    Args:
        repos: Folder served as the revision "main" of each "owner/name".
        revisions: For each "owner/name", more revisions and their folders.

    Attributes:
        url: The address, for `HF_ENDPOINT`.
        requests: Every request, in order of arrival.
        sent: For each "owner/name", the bytes sent of each of its files.
        uploaded: For each "owner/name" created or committed to, the files it was sent.
    """

    token = "hf_fake"

    def __init__(
        self,
        repos: Mapping[str, Path] | None = None,
        revisions: Mapping[str, Mapping[str, Path]] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.uploaded: dict[str, Tree] = {}
        self.sent: dict[str, Counter[str]] = defaultdict(Counter)
        self._gated: set[str] = set()
        self._downloaded: dict[str, set[str]] = defaultdict(set)
        self._cuts: dict[tuple[str, str], _Cut] = {}
        # Both by repository: the commit of each revision, the tree of each commit.
        self._revisions: dict[str, dict[str, str]] = {}
        self._commits: dict[str, dict[str, Tree]] = {}
        for repo, folder in (repos or {}).items():
            self.add(repo, folder)
        for repo, folders in (revisions or {}).items():
            for revision, folder in folders.items():
                self.add(repo, folder, revision)

    def __enter__(self) -> FakeHub:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Serve the files of `folder` as `revision` of `repo`; return its commit."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        contents = [path.read_bytes() for path in files]
        return self._commit(repo, revision, dict(zip(names, contents, strict=True)))

    def downloaded(self, repo: str) -> set[str]:
        """Return the files of `repo` that were sent to their last byte."""
        return set(self._downloaded[repo])

    def gate(self, repo: str) -> None:
        """Refuse the files of `repo`, whose names everybody may see."""
        self._gated.add(repo)

    def cut_after(
        self,
        repo: str,
        file: str,
        nbytes: int,
        *,
        times: int | None = None,
        reset: bool = False,
    ) -> None:
        """Announce the whole of `file`, but hang up after its first `nbytes` bytes.

        Args:
            repo: "owner/name".
            file: Path of the file in the repository.
            nbytes: Position in the file (bytes), also for a request that resumes.
            times: How many requests to cut; all of them if None.
            reset: Reset the connection, which the client does not retry, instead of
                closing it, after which the client tries again five times, a second
                apart.
        """
        self._cuts[repo, file] = _Cut(nbytes, times, reset)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that make a child process use this hub and no other.

        Args:
            home: Where the child keeps its cache and its token.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HUGGINGFACE_CO_STAGING": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def use_here(self, home: Path, monkeypatch: Any) -> None:
        """Make this process use this hub and no other, until the test ends.

        Args:
            home: As of `environment`.
            monkeypatch: pytest's.
        """
        from huggingface_hub import constants

        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, known in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():
            monkeypatch.setattr(constants, name, known)

    def _commit(self, repo: str, revision: str, tree: Tree) -> str:
        listing = "".join(f"{_oid(tree[path])} {path}\n" for path in sorted(tree))
        commit = hashlib.sha1(f"{repo}\n{listing}".encode()).hexdigest()
        self._commits.setdefault(repo, {})[commit] = tree
        self._revisions.setdefault(repo, {})[revision] = commit
        return commit

    def _resolve(self, repo: str, revision: str) -> tuple[str, Tree]:
        if repo not in self._revisions:
            raise _Refusal(404, "RepoNotFound")
        commit = self._revisions[repo].get(revision, revision)
        if commit not in self._commits[repo]:
            raise _Refusal(404, "RevisionNotFound")
        return commit, self._commits[repo][commit]

    def _take_cut(self, repo: str, file: str, stop: int) -> _Cut | None:
        cut = self._cuts.get((repo, file))
        if cut is None or cut.times == 0 or stop <= cut.nbytes:
            return None
        if cut.times is not None:
            self._cuts[repo, file] = cut._replace(times=cut.times - 1)
        return cut


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    # Joined by server_close, so that no thread outlives the test that started it.
    daemon_threads = False
    hub: FakeHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    # One request per connection, so that none is left open at the end.
    protocol_version = "HTTP/1.0"
    timeout = 30
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        # Read even if refused: hanging up on unread data would reset the connection.
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.hub.requests.append(Request(self.command, path))
        try:
            if self.command == "POST":
                self._write(path, [json.loads(line) for line in body.splitlines()])
            elif match := _FILE.fullmatch(path):
                self._send_file(*map(unquote, match.groups()))
            else:
                self._describe(path)
        except _Refusal as refusal:
            headers = {"X-Error-Code": str(refusal)}
            self._send({"error": str(refusal)}, refusal.status, headers)

    do_HEAD = do_POST = do_GET

    def _describe(self, path: str) -> None:
        repo, verb, revision = _split(path)
        commit, tree = self.server.hub._resolve(repo, revision)
        if verb == "tree":
            files = [
                {"type": "file", "path": name, "oid": _oid(data), "size": len(data)}
                for name, data in tree.items()
            ]
            self._send(files)
        else:
            siblings = [{"rfilename": name} for name in tree]
            self._send({"id": repo, "sha": commit, "siblings": siblings})

    def _write(self, path: str, items: list[dict[str, Any]]) -> None:
        hub = self.server.hub
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            raise _Refusal(401, "Unauthorized")
        if path == "/api/repos/create":
            repo = f"{items[0]['organization']}/{items[0]['name']}"
            exists = repo in hub._revisions
            if not exists:
                hub._commit(repo, "main", {})
                hub.uploaded[repo] = {}
            # The client asks for the address of a repository that exists already, too.
            return self._send({"url": f"{hub.url}/{repo}"}, 409 if exists else 200)
        repo, verb, revision = _split(path)
        _, tree = hub._resolve(repo, revision)
        if verb == "preupload":
            names = [file["path"] for file in items[0]["files"]]
            oids = {name: _oid(data) for name, data in tree.items()}
            # "regular" whatever the size: the file then comes inside the commit.
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": name, "oid": oids.get(name), **mode} for name in names]
            self._send({"files": files})
        elif verb == "commit":
            if {item["key"] for item in items} - {"header", "file"}:
                raise _Refusal(400, "BadRequest")
            sent = [item["value"] for item in items if item["key"] == "file"]
            new = {file["path"]: base64.b64decode(file["content"]) for file in sent}
            hub.uploaded.setdefault(repo, {}).update(new)
            commit = hub._commit(repo, revision, tree | new)
            address = f"{hub.url}/{repo}/commit/{commit}"
            self._send({"commitOid": commit, "commitUrl": address})
        else:
            raise _Refusal(404, "NotFound")

    def _send_file(self, repo: str, revision: str, name: str) -> None:
        hub = self.server.hub
        commit, tree = hub._resolve(repo, revision)
        if name not in tree:
            raise _Refusal(404, "EntryNotFound")
        if repo in hub._gated:
            raise _Refusal(403, "GatedRepo")
        data = tree[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(data)}"'}
        start, stop, status = 0, len(data), 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, status = int(wanted[1]), 206
            stop = min(stop, int(wanted[2]) + 1) if wanted[2] else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        headers["Content-Length"] = str(stop - start)
        cut = hub._take_cut(repo, name, stop) if self.command == "GET" else None
        if self.command == "GET" and cut is None and stop == len(data):
            hub._downloaded[repo].add(name)
        stop = stop if cut is None else max(start, min(stop, cut.nbytes))
        if self.command == "GET":
            hub.sent[repo][name] += stop - start
        self._send(data[start:stop], status, headers)
        if cut is not None and cut.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Both hold the socket; the server itself would only end it in order.
            self.rfile.close()
            self.connection.close()

    def _send(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = "application/octet-stream" if data is value else "application/json"
        known = {"Content-Type": kind, "Content-Length": str(len(data))}
        self.send_response(status)
        for name, content in {**known, **(headers or {})}.items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _split(path: str) -> tuple[str, str | None, str]:
    if not (match := _API.fullmatch(path)):
        raise _Refusal(404, "NotFound")
    return match["repo"], match["verb"], unquote(match["revision"] or "main")
