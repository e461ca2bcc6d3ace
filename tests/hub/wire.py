"""Requests, answers and routes: the small web framework that the Hub's routes are written in.

A route's template speaks of ``{kinds}`` (models, datasets, spaces), ``{repo}`` (owner/name), ``{revision}`` and other
single segments, and ``{path}`` (the rest, slashes included).  Segments are matched before they are unquoted, because
the client sends a revision such as ``refs/pr/1`` as one segment with escaped slashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from .accounts import Account
from .blobs import CHUNK
from .errors import bad_request
from .repositories import RepoKind

if TYPE_CHECKING:
    from .state import Hub

_KINDS: dict[str, RepoKind] = {"models": "model", "datasets": "dataset", "spaces": "space"}
_SHAPES = {
    "kinds": "models|datasets|spaces",
    "web": "(?:datasets/|spaces/)?",
    "repo": "[^/]+/[^/]+?",
    "path": ".*",
    "part": r"\d+",
}


class ConnectionLost(Exception):
    """The connection ended, by accident or on demand, before the request was whole."""


class RequestBody:
    """The body of a request as a stream, whatever way its length is told."""

    def __init__(self, stream: BufferedIOBase, headers: Message) -> None:
        self._stream = stream
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._left = int(headers.get("Content-Length") or 0)
        self._ended = False

    def chunks(self) -> Iterator[bytes]:
        """The rest of the body in pieces of bounded size."""
        while piece := self.read(CHUNK):
            yield piece

    def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes; nothing at the end."""
        if self._chunked and self._left == 0 and not self._ended:
            self._next_chunk()
        wanted = min(limit, self._left)
        piece = self._stream.read(wanted) if wanted else b""
        if len(piece) < wanted:
            raise ConnectionLost
        self._left -= len(piece)
        if self._chunked and piece and self._left == 0:
            self._stream.readline()
        return piece

    def read_all(self) -> bytes:
        """The rest of the body, for requests that are small by nature."""
        return b"".join(self.chunks())

    def drain(self) -> None:
        """Read what is left, so that the connection can be used again and the client can read the answer."""
        for _ in self.chunks():
            pass

    def _next_chunk(self) -> None:
        try:
            self._left = int(self._stream.readline().split(b";")[0], 16)
        except ValueError as error:
            raise ConnectionLost from error
        if self._left == 0:
            self._ended = True
            self._stream.readline()


@dataclass
class Request:
    """One request, with what the route's template found in its path."""

    method: str
    target: str
    headers: Message
    body: RequestBody
    account: Account | None = None
    params: dict[str, str] = field(default_factory=dict)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query's values; a list may be spelled with or without brackets."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def kind(self) -> RepoKind:
        """The kind of repository that the path speaks of."""
        return _KINDS[self.params.get("kinds") or self.params.get("web", "").rstrip("/") or "models"]

    def flag(self, name: str) -> bool:
        """A boolean of the query."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body.read_all() or b"{}")
        except ValueError as error:
            raise bad_request("The body is not valid JSON") from error
        if not isinstance(value, dict):
            raise bad_request("The body must be a JSON object")
        return value

    def form(self) -> dict[str, Any]:
        """The body as a form or as JSON, which two generations of clients send to the same address."""
        if "json" in self.headers.get("Content-Type", ""):
            return self.json()
        return parse_qs(self.body.read_all().decode())


@dataclass(frozen=True)
class FileSlice:
    """A piece of a file to be sent from disk, and the repository whose traffic it counts for."""

    path: Path
    start: int
    length: int
    repo_id: str


@dataclass
class Response:
    """One answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileSlice = b""

    @property
    def length(self) -> int:
        """The length of the body."""
        return self.body.length if isinstance(self.body, FileSlice) else len(self.body)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    content_type = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status, {**content_type, **(headers or {})}, json.dumps(value).encode())


Route = Callable[["Hub", Request], Response]


class Router:
    """Finds the function for a request."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Route]] = []

    def add(self, method: str, template: str) -> Callable[[Route], Route]:
        """A decorator that registers a function for a method and a path."""

        def register(function: Route) -> Route:
            self._routes.append((method, _compile(template), function))
            return function

        return register

    def find(self, method: str, target: str) -> tuple[Route, dict[str, str]] | None:
        """The first route that fits, with the values in its path; a HEAD is served by the route of its GET."""
        path = urlsplit(target).path
        wanted = "GET" if method == "HEAD" else method
        for route_method, pattern, function in self._routes:
            match = pattern.fullmatch(path) if route_method == wanted else None
            if match is not None:
                return function, {name: unquote(value) for name, value in match.groupdict().items()}
        return None


router = Router()


def _compile(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    for position in range(1, len(pieces), 2):
        name = pieces[position]
        pieces[position] = f"(?P<{name}>{_SHAPES.get(name, '[^/]+')})"
    pieces[::2] = [re.escape(text) for text in pieces[::2]]
    return re.compile("".join(pieces))
