"""Everything that the server knows, and the rules of access that all routes share."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .accounts import Account, TokenBook
from .blobs import Blob, BlobStore
from .errors import HubError, forbidden, gated_repo, login_required, repo_not_found
from .faults import FaultPlan
from .objects import Entry, Tree, lfs_entry, regular_entry
from .repositories import RepoKind, Repository, require_consistent, require_path
from .upload_rules import belongs_in_lfs
from .wire import Request

if TYPE_CHECKING:
    from .routes_jobs import Job, ScheduledJob

_SAMPLE = 512
QuotaStage = Literal["preupload", "commit"]


@dataclass
class Settings:
    """The sizes at which the server changes its behaviour; tests make them small."""

    regular_limit: int = 10 * 1024**2
    multipart_threshold: int = 5 * 1024**3
    part_size: int = 16 * 1024**2
    tree_page_size: int = 1000
    lfs_redirect: bool = True
    latency: float = 0.0


@dataclass(frozen=True)
class Quota:
    """How much LFS content a namespace may hold, and where and how an excess is refused."""

    max_bytes: int
    status: int
    stage: QuotaStage


@dataclass
class Upload:
    """Permission to bring one announced content, in one piece or in parts."""

    repo: Repository
    blob: Blob
    part_size: int | None
    etags: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestRecord:
    """One line of the log; a status of None says that the connection was dropped on purpose or lost."""

    method: str
    path: str
    status: int | None
    authenticated: bool


@dataclass
class Traffic:
    """Bytes of file content that a repository received and gave."""

    uploaded: int = 0
    downloaded: int = 0


class Hub:
    """The state of one server; ``lock`` guards every change of a repository, which makes commits atomic."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.settings = settings
        self.blobs = BlobStore(root)
        self.tokens = TokenBook()
        self.faults = FaultPlan()
        self.lock = threading.RLock()
        self.repos: dict[tuple[RepoKind, str], Repository] = {}
        self.moved: dict[tuple[RepoKind, str], str] = {}
        self.uploads: dict[str, Upload] = {}
        self.quotas: dict[str, Quota] = {}
        self.jobs: dict[str, Job] = {}
        self.schedules: dict[str, ScheduledJob] = {}
        self.schedules_made = 0
        self.job_plans: list[dict[str, Any]] = []
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        self.log: list[RequestRecord] = []
        self.endpoint = ""
        self.storage_endpoint = ""
        self._signing_key = secrets.token_bytes(32)
        self._traffic_lock = threading.Lock()

    def count(self, repo_id: str, *, uploaded: int = 0, downloaded: int = 0) -> None:
        """Add to a repository's traffic, which several connections may do at once."""
        with self._traffic_lock:
            self.traffic[repo_id].uploaded += uploaded
            self.traffic[repo_id].downloaded += downloaded

    def repo_for_reading(self, request: Request) -> Repository:
        """The repository of the path, if the bearer may know of it."""
        return self.visible_repo(request, request.kind, request.params["repo"])

    def repo_for_content(self, request: Request) -> Repository:
        """The repository of the path, if the bearer may read its files."""
        repo, account = self.repo_for_reading(request), request.account
        admitted = account is not None and (account.owns(repo.namespace) or account.name in repo.readers)
        if repo.gated and not admitted:
            raise gated_repo(repo.id, authenticated=account is not None)
        return repo

    def repo_for_writing(self, request: Request) -> Repository:
        """The repository of the path, if the bearer may change it."""
        repo = self.repo_for_reading(request)
        require_writer(request.account, repo.namespace)
        return repo

    def visible_repo(self, request: Request, kind: RepoKind, repo_id: str) -> Repository:
        """A repository that the bearer may know of; a moved one is answered with its new address."""
        account = request.account
        if (kind, repo_id) in self.moved:
            location = request.target.replace(repo_id, self.moved[kind, repo_id], 1)
            raise HubError(307, "This repository has moved", headers={"Location": self.endpoint + location})
        repo = self.repos.get((kind, repo_id))
        hidden = repo is None or (repo.private and not (account and account.owns(repo.namespace)))
        if repo is None or hidden:
            raise repo_not_found(authenticated=account is not None)
        return repo

    def stored_entry(self, repo: Repository, tree: Tree, path: str, content: bytes | Path) -> Entry:
        """Put a file into the store by the rules of an upload, for tests that prepare a repository."""
        size, sample = _size_and_sample(content)
        if belongs_in_lfs(path, size, sample, self.text_file(tree, ".gitattributes"), self.settings.regular_limit):
            blob = self.blobs.add_file(content) if isinstance(content, Path) else self.blobs.add(content)
            repo.lfs_objects[blob.sha256] = blob.size
            return lfs_entry(blob.sha256, blob.size)
        whole = content.read_bytes() if isinstance(content, Path) else content
        return regular_entry(whole, self.blobs.add(whole).sha256)

    def commit_files(
        self, repo: Repository, files: Mapping[str, bytes | Path | None], branch: str, message: str, author: str
    ) -> str:
        """Commit on behalf of a test, past all permissions; None deletes a file."""
        with self.lock:
            tree = dict(repo.head(branch).tree) if repo.commits else {}
            for path, content in files.items():
                if content is None:
                    del tree[path]
                else:
                    tree[require_path(path)] = self.stored_entry(repo, tree, path, content)
            require_consistent(tree)
            return repo.append(branch, tree, message, "", author).oid

    def text_file(self, tree: Tree, path: str) -> str | None:
        """A small file of a tree as text, if it is there."""
        entry = tree.get(path)
        return self.blobs.read(entry.sha256).decode(errors="replace") if entry and not entry.is_lfs else None

    def refuse_beyond_quota(self, namespace: str, stage: QuotaStage, more: int = 0) -> None:
        """Refuse what would exceed the namespace's storage."""
        quota = self.quotas.get(namespace)
        if quota is None or quota.stage != stage:
            return
        sizes = [repo.lfs_objects for repo in self.repos.values() if repo.namespace == namespace]
        used = sum(sum(objects.values()) for objects in sizes)
        if used + more > quota.max_bytes:
            raise HubError(quota.status, "Storage limit reached, please upgrade your plan to increase it")

    def sign(self, path: str) -> str:
        """A proof, for an address of the storage host, that the Hub itself gave it out."""
        return hmac.new(self._signing_key, path.encode(), hashlib.sha256).hexdigest()


def require_writer(account: Account | None, namespace: str) -> Account:
    """Refuse a bearer who may not write, saying whether the account or only the token is at fault."""
    if account is None:
        raise login_required()
    if account.may_write(namespace):
        return account
    if account.owns(namespace):
        raise forbidden("Forbidden: you must use a write token to upload to a repository.")
    raise forbidden(f'You don\'t have the rights to write under the namespace "{namespace}"')


def _size_and_sample(content: bytes | Path) -> tuple[int, bytes]:
    if isinstance(content, bytes):
        return len(content), content[:_SAMPLE]
    with content.open("rb") as stream:
        return content.stat().st_size, stream.read(_SAMPLE)
