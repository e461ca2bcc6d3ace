"""The issues of one repository on GitHub, on loopback, by the part of the REST API that is asked for."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class GitHub(ThreadingHTTPServer):
    """The issues of one repository, by the part of the REST API that is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.issues: list[dict[str, Any]] = []
        self.token = "ghs_" + "s" * 36
        self.refusal: tuple[int, bytes] | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        github, address = self.server, urlsplit(self.path)
        content = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        github.asked.append(self.command)
        if github.refusal:
            self.answer(*github.refusal)
        elif self.headers["Authorization"] != f"Bearer {github.token}":
            self.answer(401, b'{"message": "Bad credentials"}')
        elif not address.path.startswith("/repos/me/repo/issues"):
            self.answer(404, b'{"message": "Not Found"}')
        elif self.command == "GET":
            query = parse_qs(address.query)
            assert (query["state"], query["direction"]) == (["all"], ["asc"])
            labelled = [issue for issue in github.issues if set(query["labels"]) <= set(issue["labels"])]
            self.answer(200, json.dumps(labelled).encode())
        elif self.command == "POST":
            number = len(github.issues) + 1
            github.issues.append({**content, "number": number, "state": "open", "html_url": f"{github.url}/{number}"})
            self.answer(201, json.dumps(github.issues[-1]).encode())
        else:
            issue = github.issues[int(address.path.rpartition("/")[2]) - 1]
            issue |= content
            self.answer(200, json.dumps(issue).encode())

    do_POST = do_PATCH = do_GET

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
