"""The one issue about a catalog: opened, written anew, opened again and closed, over a real socket."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import cli
from mopeq_hub.errors import MopeqError
from mopeq_hub.github import LABEL, Issue, keep_issue
from tests.github_server import GitHub

FRESH: dict[str, Any] = {"to": "me/a", "model": "x/a", "state": "fresh", "reasons": [], "commit": None, "error": None}
STALE = {**FRESH, "state": "stale", "reasons": ["the recipe changed: seed from 0 to 1"]}
FAILED = {**FRESH, "to": "me/b", "state": "failed", "error": "x/b does not exist; check the name"}


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    with GitHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        monkeypatch.setenv("GITHUB_REPOSITORY", "me/repo")
        monkeypatch.setenv("GITHUB_TOKEN", server.token)
        monkeypatch.setenv("GITHUB_RUN_ID", "7")
        monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
        yield server
        server.shutdown()


def test_one_issue_follows_a_catalog_through_all_its_days(github: GitHub) -> None:
    assert keep_issue("catalog", [FRESH]) is None
    assert github.issues == [], "all is well, and always was"

    assert keep_issue("catalog", [FRESH, STALE, FAILED]) == Issue(1, f"{github.url}/1", "open")
    (issue,) = github.issues
    assert issue["labels"] == [LABEL]
    assert "2 of 3 publications are stale or failed" in issue["body"]
    assert "| stale | the recipe changed&#58; seed from 0 to 1 |" in issue["body"]
    assert "| failed | x/b does not exist; check the name |" in issue["body"]
    assert "https://github.example/me/repo/actions/runs/7" in issue["body"]
    assert "me/a" in issue["body"]

    assert keep_issue("catalog", [FRESH, FAILED]) == Issue(1, f"{github.url}/1", "open")
    assert "1 of 2 publications" in github.issues[0]["body"]
    assert keep_issue("catalog", [FRESH]) == Issue(1, f"{github.url}/1", "closed")
    assert "as it should be" in github.issues[0]["body"]
    github.asked.clear()
    assert keep_issue("catalog", [FRESH]) is None
    assert github.asked == ["GET"], "a closed issue is left alone"
    assert keep_issue("catalog", [STALE]) == Issue(1, f"{github.url}/1", "open")
    assert keep_issue("other", [STALE]) == Issue(2, f"{github.url}/2", "open")
    assert len(github.issues) == 2


def test_an_issue_of_somebody_elses_is_not_taken_for_ours(github: GitHub) -> None:
    keep_issue("catalog", [STALE])
    ours = github.issues.pop()
    github.issues += [
        {"number": 1, "state": "open", "labels": [LABEL], "body": "look: " + ours["body"], "html_url": ""},
        {"number": 2, "state": "open", "labels": [], "body": ours["body"], "html_url": ""},
        {"number": 3, "state": "open", "labels": [LABEL], "body": ours["body"], "html_url": "", "pull_request": {}},
    ]
    assert keep_issue("catalog", [STALE]) == Issue(4, f"{github.url}/4", "open")


def test_what_strangers_named_stays_text(github: GitHub) -> None:
    hostile = "@everyone <b> | [x](http://x) `y` #1"
    keep_issue("cat` -->\n@all", [{**FAILED, "to": hostile, "error": hostile}])
    body = github.issues[0]["body"]
    table = next(line for line in body.splitlines() if "failed" in line and line.startswith("|"))
    assert table.count("|") == 5
    assert all(markup not in table for markup in ("@everyone", "<b>", "](http://x)", "`", "#1 "))
    assert body.splitlines()[0] == "<!-- mopeq-hub republish cat-all -->"


def test_a_long_catalog_has_room(github: GitHub) -> None:
    keep_issue("catalog", [{**FAILED, "error": "x" * 500}] * 1000)
    assert len(github.issues[0]["body"]) < 65_536
    assert "more |" in github.issues[0]["body"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b'{"message": "Resource not accessible"}', "403 Resource not accessible; give the job `permissions"),
        (410, b'{"message": "Issues are disabled"}', "switch the repository's issues on"),
        (500, b'{"message": "down"}', "try again later"),
        (200, b"<html>", "GitHub gave no JSON"),
        (404, b"[]", "GitHub gave no JSON"),
    ],
)
def test_what_github_refuses_is_one_line(status: int, body: bytes, words: str, github: GitHub) -> None:
    github.refusal = (status, body)
    with pytest.raises(MopeqError) as raised:
        keep_issue("catalog", [STALE])
    assert words in str(raised.value)
    assert github.token not in str(raised.value)


def test_a_github_that_is_not_there_is_one_line(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:1")
    with pytest.raises(MopeqError, match="GitHub cannot be reached for the issue of me/repo: ConnectError"):
        keep_issue("catalog", [STALE])


@pytest.mark.parametrize(("name", "value"), [("REPOSITORY", "a/b/../c"), ("TOKEN", ""), ("REPOSITORY", "")])
def test_outside_of_a_run_it_is_refused(name: str, value: str, github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GITHUB_{name}", value)
    with pytest.raises(MopeqError, match=f"GITHUB_{name}"):
        keep_issue("catalog", [STALE])
    assert github.asked == []


def test_a_catalog_that_cannot_be_read_opens_the_issue_too(
    github: GitHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("model: x\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["republish", str(tmp_path / "mine.yaml"), "--dry-run", "--issue"])
    assert ended.value.code == 2
    assert "mine.yaml is not a list of publications" in github.issues[0]["body"]
    assert len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "mine.yaml").write_text("[]")
    with pytest.raises(SystemExit):
        cli.main(["republish", str(tmp_path / "mine.yaml"), "--issue"])
    assert github.issues[0]["state"] == "closed"


def test_a_token_in_an_error_is_not_told(github: GitHub) -> None:
    keep_issue("catalog", [{**FAILED, "error": f"refused {github.token} and hf_{'t' * 34}"}])
    assert github.token not in github.issues[0]["body"]
    assert "hf_ttt" not in github.issues[0]["body"]
