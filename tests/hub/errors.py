"""Refusals in the exact form the client turns into its typed errors.

The client decides by the ``X-Error-Code`` and ``X-Error-Message`` headers, not by the body, so both are set in one
place.  A 401 carries ``RepoNotFound`` as well: the client maps a bare 401 only on ``https`` addresses, and a loopback
server speaks plain ``http``; with the code the same exception is raised here as in production.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HubError(Exception):
    """A request refused: the handler turns it into a response."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body = dict(body or {})


def bad_request(message: str, **body: Any) -> HubError:
    """400: the request itself is wrong."""
    return HubError(400, message, body=body)


def forbidden(message: str) -> HubError:
    """403: the account is known, and may not do this."""
    return HubError(403, message)


def conflict(message: str, **body: Any) -> HubError:
    """409: what is to be created exists; ``url`` in the body is what ``exist_ok`` clients read."""
    return HubError(409, message, body=body)


def invalid_token() -> HubError:
    """401 with the one message that the client does not take for a missing repository."""
    return HubError(401, "Invalid credentials in Authorization header")


def login_required() -> HubError:
    """401 for an anonymous request to something that only an account may see or do."""
    return HubError(401, "Invalid username or password.", "RepoNotFound")


def repo_not_found(*, authenticated: bool) -> HubError:
    """A missing repository and an invisible one get the same answer, so that existence does not leak."""
    return HubError(404, "Repository not found", "RepoNotFound") if authenticated else login_required()


def revision_not_found(revision: str) -> HubError:
    """404 for a branch, tag or commit that the repository does not have."""
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str = "Entry not found", commit: str | None = None) -> HubError:
    """404 for a path; the commit header lets the client remember that the file does not exist there."""
    return HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit} if commit else None)


def gated_repo(repo_id: str, *, authenticated: bool) -> HubError:
    """401 or 403 for the content of a gated repository whose metadata may be read."""
    advice = "ask for access" if authenticated else "You must be authenticated to access it"
    message = f"Access to {repo_id} is restricted. {advice[0].upper()}{advice[1:]}."
    return HubError(403 if authenticated else 401, message, "GatedRepo")
