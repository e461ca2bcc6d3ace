"""The server as tests see it: start it, seed it, break it, look into it."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import (
    routes_account,
    routes_download,
    routes_jobs,
    routes_refs,
    routes_repos,
    routes_spaces,
    routes_upload,
)
from .accounts import Role
from .faults import Fault, Side
from .handler import HubListener
from .objects import Commit, Entry
from .repositories import Gating, RepoKind, Repository, SpaceState
from .state import Hub, Quota, QuotaStage, RequestRecord, Settings, Traffic

# Importing a module of routes registers them; the tuple states that this is on purpose.
ROUTES = (routes_account, routes_download, routes_jobs, routes_refs, routes_repos, routes_spaces, routes_upload)

_POLL_SECONDS = 0.02


class HubServer:
    """A Hub on loopback.  Storage has a port of its own, as it has a host of its own in production.

    In the folder of an earlier one it goes on from what that was told to `keep`.
    """

    def __init__(self, root: Path, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._hub = Hub(Path(root), self.settings)
        self._kept = Path(root) / "repositories.pickle"
        if self._kept.is_file():
            self._hub.repos, traffic = pickle.loads(self._kept.read_bytes())
            self._hub.traffic.update(traffic)
        self._listeners = (HubListener(self._hub), HubListener(self._hub))
        self._threads: list[threading.Thread] = []
        self._hub.endpoint, self._hub.storage_endpoint = (listener.url for listener in self._listeners)

    def __enter__(self) -> Self:
        for listener in self._listeners:
            thread = threading.Thread(target=listener.serve_forever, args=(_POLL_SECONDS,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        for thread in self._threads:
            thread.join()

    @property
    def endpoint(self) -> str:
        """The address for ``HF_ENDPOINT`` or ``HfApi(endpoint=...)``."""
        return self._hub.endpoint

    @property
    def storage_endpoint(self) -> str:
        """The address of the storage host, where LFS content goes to and comes from."""
        return self._hub.storage_endpoint

    def keep(self) -> None:
        """Have a later server in this folder begin with the repositories of this one, and with their traffic."""
        self._kept.write_bytes(pickle.dumps((self._hub.repos, dict(self._hub.traffic))))

    # Accounts

    def token(self, name: str, role: Role = "write", orgs: Iterable[str] = ()) -> str:
        """A new token of an account, which comes into being with its first token."""
        return self._hub.tokens.issue(name, role, orgs)

    def revoke(self, token: str) -> None:
        """Make a token invalid."""
        self._hub.tokens.revoke(token)

    def set_quota(
        self, namespace: str, max_bytes: int, status: Literal[402, 403] = 403, stage: QuotaStage = "preupload"
    ) -> None:
        """Limit the LFS content of a namespace; the excess is refused at the given stage with the given status."""
        self._hub.quotas[namespace] = Quota(max_bytes, status, stage)

    # Content

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path | None = None,
        repo_type: RepoKind = "model",
        private: bool = False,
        gated: Gating = False,
        sdk: str = "gradio",
    ) -> str:
        """Make a repository that has exactly these files in its first commit, and give that commit's sha."""
        space = SpaceState(sdk) if repo_type == "space" else None
        repo = Repository(repo_type, repo_id, private=private, gated=gated, space=space)
        self._hub.repos[repo_type, repo_id] = repo
        return self._hub.commit_files(repo, _as_files(files or {}), "main", "initial commit", repo.namespace)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None] | Path,
        message: str = "update",
        revision: str = "main",
        repo_type: RepoKind = "model",
    ) -> str:
        """Commit as if someone else had pushed; None deletes a file."""
        repo = self._repo(repo_id, repo_type)
        return self._hub.commit_files(repo, _as_files(files), revision, message, repo.namespace)

    def has_repo(self, repo_id: str, repo_type: RepoKind = "model") -> bool:
        """Whether the repository exists, private or not."""
        return (repo_type, repo_id) in self._hub.repos

    def head(self, repo_id: str, revision: str = "main", repo_type: RepoKind = "model") -> str:
        """The commit sha that a revision names."""
        return self._commit(repo_id, revision, repo_type).oid

    def history(self, repo_id: str, revision: str = "main", repo_type: RepoKind = "model") -> list[Commit]:
        """The commits of a revision, newest first."""
        return self._repo(repo_id, repo_type).history(self._commit(repo_id, revision, repo_type))

    def files(self, repo_id: str, revision: str = "main", repo_type: RepoKind = "model") -> dict[str, bytes]:
        """The content of every file, in memory: for asserts on small repositories."""
        tree = self._commit(repo_id, revision, repo_type).tree
        return {path: self._hub.blobs.read(entry.sha256) for path, entry in tree.items()}

    def entries(self, repo_id: str, revision: str = "main", repo_type: RepoKind = "model") -> dict[str, Entry]:
        """Size, digest and kind of storage of every file, without reading it."""
        return dict(self._commit(repo_id, revision, repo_type).tree)

    def branches(self, repo_id: str, repo_type: RepoKind = "model") -> dict[str, str]:
        """The branches and their heads."""
        return dict(self._repo(repo_id, repo_type).branches)

    def tags(self, repo_id: str, repo_type: RepoKind = "model") -> dict[str, str]:
        """The tags and their commits."""
        return dict(self._repo(repo_id, repo_type).tags)

    def secret_is(self, repo_id: str, key: str, value: str) -> bool:
        """Whether a space's secret has this value, which is all that can be learned of it."""
        space = self._repo(repo_id, "space").space
        return space is not None and space.secret_digests.get(key) == routes_spaces.secret_digest(value)

    # Jobs

    def plan_job(self, *parts: Iterable[str], outcome: str = "COMPLETED", message: str | None = None) -> None:
        """What the next job that is submitted will say, in parts that come one with each request, and how it ends."""
        plan = {"parts": [list(part) for part in parts], "outcome": outcome, "message": message}
        self._hub.job_plans.append(plan)

    @property
    def jobs(self) -> list[routes_jobs.Job]:
        """The jobs that were submitted, in order."""
        return list(self._hub.jobs.values())

    @property
    def schedules(self) -> list[routes_jobs.ScheduledJob]:
        """The jobs that are scheduled now, the oldest first."""
        return list(self._hub.schedules.values())

    # Failures and observations

    def fail_next(
        self,
        path_regex: str,
        status: int | None = 500,
        times: int = 1,
        after_bytes: int | None = None,
        method: str | None = None,
        side: Side | None = None,
        message: str = "Injected failure",
        retry_after: int | None = None,
    ) -> None:
        """Make the next matching requests fail.

        Without ``after_bytes`` the answer is an error of the given status, or with ``status=None`` the connection is
        dropped without any answer.  With ``after_bytes`` the connection is dropped in the middle of the body: of the
        request's for PUT and POST, of the answer's otherwise, or of the given ``side``.  A drop on the request's side
        happens before the server acts, one on the response's side after: ``side="response"`` is how to lose the
        answer to a commit that was made.  The regex is searched in the unquoted path, without the query.
        """
        fault = Fault(re.compile(path_regex), method, status, after_bytes, side, message, retry_after)
        self._hub.faults.add(fault, times)

    def clear_faults(self) -> None:
        """Forget the failures that have not happened yet."""
        self._hub.faults.clear()

    @property
    def pending_faults(self) -> int:
        """How many planned failures have not happened yet."""
        return len(self._hub.faults)

    def requests(self, path_regex: str = "", method: str | None = None) -> list[RequestRecord]:
        """The log of requests so far, filtered by path and method."""
        pattern = re.compile(path_regex)
        return [line for line in list(self._hub.log) if pattern.search(line.path) and method in (None, line.method)]

    def clear_log(self) -> None:
        """Begin a new log."""
        self._hub.log.clear()

    def traffic(self, repo_id: str) -> Traffic:
        """How many bytes of file content a repository received and gave so far."""
        return self._hub.traffic[repo_id]

    def _repo(self, repo_id: str, repo_type: RepoKind) -> Repository:
        return self._hub.repos[repo_type, repo_id]

    def _commit(self, repo_id: str, revision: str, repo_type: RepoKind) -> Commit:
        return self._repo(repo_id, repo_type).resolve(revision)


def _as_files(files: Mapping[str, bytes | Path | None] | Mapping[str, bytes] | Path) -> dict[str, bytes | Path | None]:
    if not isinstance(files, Path):
        return dict(files)
    return {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}
