"""The HTTP side: reads a request, applies planned faults, finds the route, sends the answer, writes the log."""

from __future__ import annotations

import socket
import sys
import time
import traceback
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from .accounts import Account
from .blobs import CHUNK
from .errors import HubError, invalid_token
from .faults import Fault
from .state import Hub, RequestRecord
from .wire import ConnectionLost, FileSlice, Request, RequestBody, Response, json_response, router


class HubListener(ThreadingHTTPServer):
    """One listening port of the server, closing its open connections when it stops."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), HubRequestHandler)

    @property
    def url(self) -> str:
        """The address of this listener."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        # Threads that wait for the next request of an idle connection would otherwise outlive the server.
        for connection in list(self._open):
            _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class HubRequestHandler(BaseHTTPRequestHandler):
    """Serves the requests of one connection."""

    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes; with Nagle's algorithm each answer would wait for a delayed ACK.
    disable_nagle_algorithm = True
    server: HubListener

    def do_GET(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        body = RequestBody(self.rfile, self.headers)
        fault = hub.faults.take(self.command, path)
        if hub.settings.latency:
            time.sleep(hub.settings.latency)
        try:
            response = self._faulty_response(fault, body) or self._response(body)
            body.drain()
        except (ConnectionLost, ConnectionError):
            self._record(path, None)
            self._drop()
            return
        cut = fault.cut_response(self.command) if fault else None
        self._record(path, None if cut is not None else response.status)
        self._send(response, cut)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the log of requests is for the tests."""

    def _faulty_response(self, fault: Fault | None, body: RequestBody) -> Response | None:
        if fault is None:
            return None
        cut = fault.cut_request(self.command)
        if cut is not None:
            while cut > 0 and (piece := body.read(min(cut, CHUNK))):
                cut -= len(piece)
            raise ConnectionLost
        if fault.after_bytes is not None:
            return None
        if fault.status is None:
            raise ConnectionLost
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return _refusal(HubError(fault.status, fault.message, headers=headers))

    def _response(self, body: RequestBody) -> Response:
        request = Request(self.command, self.path, self.headers, body)
        try:
            found = router.find(self.command, self.path)
            if found is None:
                return _refusal(HubError(404, "Sorry, we can't find the page you are looking for."))
            route, request.params = found
            request.account = self._account()
            return route(self.server.hub, request)
        except HubError as error:
            return _refusal(error)
        except (ConnectionLost, ConnectionError):
            raise ConnectionLost from None
        except Exception:
            # A defect of this server must be seen in the test's output and not only as the client's retries.
            traceback.print_exc()
            return _refusal(HubError(500, "Internal error of the test server, see its traceback"))

    def _account(self) -> Account | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        account = self.server.hub.tokens.find(token) if scheme.lower() == "bearer" else None
        if account is None:
            raise invalid_token()
        return account

    def _record(self, path: str, status: int | None) -> None:
        authenticated = self.headers.get("Authorization") is not None
        self.server.hub.log.append(RequestRecord(self.command, path, status, authenticated))

    def _send(self, response: Response, cut: int | None) -> None:
        try:
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("X-Request-Id", str(uuid.uuid4()))
            self.send_header("Content-Length", str(response.length))
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(response.body, response.length if cut is None else min(cut, response.length))
        except ConnectionError:
            self.close_connection = True
        if cut is not None:
            self._drop()

    def _send_body(self, body: bytes | FileSlice, length: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body[:length])
            return
        with body.path.open("rb") as stream:
            stream.seek(body.start)
            while length > 0 and (piece := stream.read(min(CHUNK, length))):
                self.server.hub.count(body.repo_id, downloaded=len(piece))
                length -= len(piece)
                self.wfile.write(piece)

    def _drop(self) -> None:
        self.close_connection = True
        _hang_up(self.connection)


def _refusal(error: HubError) -> Response:
    # A header can hold neither line breaks nor every character; the body can.
    header = " ".join(error.message.split()).encode("ascii", "replace").decode()
    headers = {"X-Error-Message": header, **error.headers}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return json_response({"error": error.message, **error.body}, error.status, headers)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The other side was faster.
        return
