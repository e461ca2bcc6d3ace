"""What is GitHub's own: the one issue that is open as long as a catalog is not as it should be.

It is found again by a label and a comment in it that nobody sees, and opened, written anew, or closed.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.redact import redact
from mopeq_hub.report import code, one_line
from mopeq_hub.report.catalog import table

if TYPE_CHECKING:
    import httpx2

LABEL = "mopeq-hub-republish"
_TIMEOUT_SECONDS = 30.0
_PER_PAGE = 100
_REPOSITORY = r"[\w.-]+/[\w.-]+"
_ADVICE = {
    401: "give the step `env: GITHUB_TOKEN: ${{ github.token }}`",
    403: "give the job `permissions: issues: write`",
    404: "give the job `permissions: issues: write`",
    410: "switch the repository's issues on",
}


@dataclass(frozen=True)
class Issue:
    """The issue as it was left; `state` is open or closed."""

    number: int
    address: str
    state: str


@dataclass(frozen=True)
class _Run:
    """The workflow run that this is, from its environment."""

    repository: str
    token: str
    api: str
    address: str


def keep_issue(catalog: str, entries: list[dict[str, Any]], trouble: str | None = None) -> Issue | None:
    """Open or update the issue of a catalog where an entry failed or is stale, close it where all is well.

    entries: as `--json` tells them. trouble: why there are none. Gives None where there is no issue and no need of one.
    Raises UsageError outside of a workflow run, MopeqError where GitHub does not take it.
    """
    import httpx2

    run = _this_run()
    bad = [entry for entry in entries if entry["state"] in ("failed", "stale")]
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"Bearer {run.token}",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    marker = f"<!-- mopeq-hub republish {re.sub(r'[^A-Za-z0-9._]+', '-', catalog)} -->"
    with httpx2.Client(base_url=run.api, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as client:
        found = _found(client, run, marker)
        if not bad and not trouble:
            if found is None or found["state"] == "closed":
                return None
            told = f"{marker}\n\nEverything in {code(catalog)} is as it should be.\n\n{run.address}"
            return _kept(_asked(client, run, "PATCH", f"/{found['number']}", {"state": "closed", "body": told}))
        said = redact(trouble) if trouble else f"{len(bad)} of {len(entries)} publications are stale or failed"
        parts = [marker, f"In {code(catalog)}: {code(said)}", redact(table(bad)) if bad else "", run.address]
        content = {
            "title": f"The catalog {one_line(catalog)} is not up to date",
            "body": "\n\n".join(filter(None, parts)),
        }
        if found is None:
            return _kept(_asked(client, run, "POST", "", {**content, "labels": [LABEL]}))
        return _kept(_asked(client, run, "PATCH", f"/{found['number']}", {**content, "state": "open"}))


def _this_run() -> _Run:
    given = {name: os.environ.get(f"GITHUB_{name}", "") for name in ("REPOSITORY", "TOKEN", "RUN_ID")}
    for name in ("REPOSITORY", "TOKEN"):
        if not given[name]:
            raise UsageError(f"--issue is for a GitHub workflow run, and GITHUB_{name} is not set", _ADVICE[401])
    repository, run_id = given["REPOSITORY"], given["RUN_ID"]
    if not re.fullmatch(_REPOSITORY, repository):
        raise UsageError(f"GITHUB_REPOSITORY {repository!r} is not owner/name", "leave it as the runner sets it")
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    address = f"The run that found this: {server}/{repository}/actions/runs/{run_id}" if run_id.isdecimal() else ""
    return _Run(repository, given["TOKEN"], os.environ.get("GITHUB_API_URL", "https://api.github.com"), address)


def _found(client: "httpx2.Client", run: _Run, marker: str) -> dict[str, Any] | None:
    """The issue of this catalog, the first one if somebody made several; whoever lacks the right to label issues cannot
    have made it."""
    query = f"?labels={LABEL}&state=all&sort=created&direction=asc&per_page={_PER_PAGE}"
    issues = _asked(client, run, "GET", query)
    ours = [issue for issue in issues if "pull_request" not in issue and str(issue.get("body")).startswith(marker)]
    return ours[0] if ours else None


def _asked(client: "httpx2.Client", run: _Run, method: str, rest: str, content: dict[str, Any] | None = None) -> Any:
    import httpx2

    what = f"the issue of {run.repository}"
    try:
        answer = client.request(method, f"/repos/{run.repository}/issues{rest}", json=content)
        if answer.is_success:
            return answer.json()
        message = str(answer.json().get("message", ""))[:200]
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise MopeqError(f"GitHub cannot be reached for {what}: {type(error).__name__}", "try again later") from None
    except (ValueError, AttributeError):
        raise MopeqError(f"GitHub gave no JSON for {what}", "see GITHUB_API_URL") from None
    advice = _ADVICE.get(answer.status_code, "try again later")
    raise MopeqError(f"GitHub refused {what}: {answer.status_code} {redact(message)}", advice)


def _kept(answer: dict[str, Any]) -> Issue:
    return Issue(int(answer["number"]), str(answer.get("html_url", "")), str(answer["state"]))
