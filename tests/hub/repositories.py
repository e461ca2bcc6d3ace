"""One repository: its commits, branches, tags and settings, without anything of HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from .errors import HubError, bad_request, conflict, forbidden, revision_not_found
from .objects import Commit, Tree, commit_oid, parents

RepoKind = Literal["model", "dataset", "space"]
Gating = Literal["auto", "manual", False]

SPACE_SDKS = ("gradio", "streamlit", "docker", "static")
# Dates count commits instead of reading a clock, so that a commit's sha does not depend on when a test runs.
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_SHORTEST_SHA = 7
# Git's rules for reference names, as far as they can matter to a branch or a tag.
_REF_NAME = re.compile(r"(?![/.-])(?!.*(\.\.|//|@\{|\.lock$))[^\s~^:?*\[\\\x00-\x1f\x7f]+(?<![/.])")


@dataclass
class SpaceState:
    """What a space has beyond files.  Of a secret only a digest is kept, so that no route can give it back."""

    sdk: str
    hardware: str = "cpu-basic"
    sleep_time: int | None = None
    paused: bool = False
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    secret_digests: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """A model, dataset or space repository."""

    kind: RepoKind
    id: str
    private: bool = False
    gated: Gating = False
    space: SpaceState | None = None
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    # LFS objects that this very repository holds: the Hub does not let one repository refer to what was only ever
    # uploaded to another, which would open private content to anyone who knows its digest.
    lfs_objects: dict[str, int] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The account or organization that owns the repository."""
        return self.id.split("/")[0]

    @property
    def web_path(self) -> str:
        """The path of the repository's page."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @property
    def created(self) -> datetime:
        """The moment of creation, for listings."""
        return _EPOCH

    def head(self, branch: str = "main") -> Commit:
        """The newest commit of a branch."""
        if branch not in self.branches:
            raise revision_not_found(branch)
        return self.commits[self.branches[branch]]

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full reference or a commit sha names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or self._commit_by_sha(name)
        if oid is None:
            raise revision_not_found(revision)
        return self.commits[oid]

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and its ancestors, newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The newest commit that changed a file or anything in a folder."""
        for candidate in self.history(commit):
            before = self.commits[candidate.parent].tree if candidate.parent else {}
            if _under(candidate.tree, path) != _under(before, path):
                return candidate
        return commit

    def append(self, branch: str, tree: Tree, title: str, description: str, author: str) -> Commit:
        """Put a commit on top of a branch; the branch is made when the repository has no commit yet."""
        parent = self.head(branch) if branch in self.branches or self.commits else None
        depth = parent.depth + 1 if parent else 0
        date = _EPOCH + timedelta(seconds=depth)
        parent_oid = parent.oid if parent else None
        oid = commit_oid(tree, parent_oid, f"{title}\n\n{description}".strip(), date)
        commit = Commit(oid, parent_oid, dict(sorted(tree.items())), title, description, author, date, depth)
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit

    def require_parent(self, branch: str, parent: str) -> None:
        """Refuse a commit that was prepared on another state than the branch's present one."""
        if len(parent) < _SHORTEST_SHA or not self.head(branch).oid.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")

    def create_branch(self, name: str, start: str | None) -> None:
        """Make a branch at a revision, or at the head of main."""
        _require_ref_name(name)
        if name in self.branches:
            raise conflict(f"Reference already exists: refs/heads/{name}")
        self.branches[name] = self.resolve(start or "main").oid

    def delete_branch(self, name: str) -> None:
        """Remove a branch; main stays, as on the Hub."""
        if name == "main":
            raise forbidden("Cannot delete the main branch")
        if self.branches.pop(name, None) is None:
            raise revision_not_found(name)

    def create_tag(self, name: str, revision: str) -> None:
        """Name a revision for good."""
        _require_ref_name(name)
        commit = self.resolve(revision)
        if name in self.tags:
            raise conflict(f"Tag reference exists already: refs/tags/{name}")
        self.tags[name] = commit.oid

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        if self.tags.pop(name, None) is None:
            raise revision_not_found(name)

    def _commit_by_sha(self, sha: str) -> str | None:
        if len(sha) < _SHORTEST_SHA:
            return None
        matches = [oid for oid in self.commits if oid.startswith(sha)]
        return matches[0] if len(matches) == 1 else None


def require_path(path: object) -> str:
    """A path that stays inside the repository, or a refusal."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path:
        raise bad_request(f"Invalid path: {path!r}")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or ".git" in parts:
        raise bad_request(f"Invalid path: {path!r}")
    return path


def require_consistent(tree: Tree) -> None:
    """Refuse a tree in which one name would be both a file and a folder."""
    for path in tree:
        for folder in parents(path):
            if folder in tree:
                raise bad_request(f"Cannot have both a file and a folder named {folder!r}")


def _require_ref_name(name: object) -> None:
    if not isinstance(name, str) or not _REF_NAME.fullmatch(name):
        raise bad_request(f"Invalid reference name: {name!r}")


def _under(tree: Tree, path: str) -> dict[str, str]:
    return {name: entry.git_oid for name, entry in tree.items() if name == path or name.startswith(f"{path}/")}
