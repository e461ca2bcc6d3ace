"""Git's own naming of files, folders and commits.

The client compares the object ids it is given with ids it computes itself (that is how it skips unchanged files), so
they are the real ones.  Real ids also make a commit's sha a function of its content, its parent and its message alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

_AUTHOR = "Hub <hub@localhost>"


@dataclass(frozen=True)
class Entry:
    """One file of a commit: where its content is, and how git and LFS name it."""

    sha256: str
    size: int
    git_oid: str
    is_lfs: bool

    @property
    def etag(self) -> str:
        """The id by which the client's cache names the content."""
        return self.sha256 if self.is_lfs else self.git_oid

    def lfs_info(self) -> dict[str, str | int] | None:
        """The ``lfs`` member of listings; the two spellings of the digest are for the two kinds of listing."""
        if not self.is_lfs:
            return None
        pointer = len(lfs_pointer(self.sha256, self.size))
        return {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": pointer}


Tree = Mapping[str, Entry]


@dataclass(frozen=True)
class Commit:
    """One immutable state of a repository."""

    oid: str
    parent: str | None
    tree: Tree
    title: str
    description: str
    author: str
    date: datetime
    depth: int


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The small text that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_hash(kind: str, content: bytes) -> str:
    """Git's object id."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def lfs_entry(sha256: str, size: int) -> Entry:
    """An entry whose content lies in LFS storage."""
    return Entry(sha256, size, git_hash("blob", lfs_pointer(sha256, size)), True)


def regular_entry(content: bytes, sha256: str) -> Entry:
    """An entry whose content lies in git itself."""
    return Entry(sha256, len(content), git_hash("blob", content), False)


def parents(path: str) -> Iterator[str]:
    """The folders above a path, nearest first, without the root."""
    for folder in PurePosixPath(path).parents:
        if str(folder) != ".":
            yield str(folder)


def folder_oids(tree: Tree) -> dict[str, str]:
    """The git id of every folder of a tree; the root is the empty path."""
    members: dict[str, list[tuple[str, str, str]]] = {"": []}
    for path, entry in tree.items():
        for folder in parents(path):
            members.setdefault(folder, [])
        _add_member(members, path, "100644", entry.git_oid)
    oids: dict[str, str] = {}
    for folder in sorted(members, key=lambda name: name.count("/") if name else -1, reverse=True):
        oids[folder] = git_hash("tree", _tree_object(members[folder]))
        if folder:
            _add_member(members, folder, "40000", oids[folder])
    return oids


def commit_oid(tree: Tree, parent: str | None, message: str, date: datetime) -> str:
    """The git id of a commit made by one fixed author."""
    when = f"{_AUTHOR} {int(date.timestamp())} +0000"
    lines = [f"tree {folder_oids(tree)['']}"]
    lines += [f"parent {parent}"] if parent else []
    lines += [f"author {when}", f"committer {when}", "", message, ""]
    return git_hash("commit", "\n".join(lines).encode())


def _add_member(members: dict[str, list[tuple[str, str, str]]], path: str, mode: str, oid: str) -> None:
    folder, _, name = path.rpartition("/")
    members[folder].append((name, mode, oid))


def _tree_object(members: list[tuple[str, str, str]]) -> bytes:
    # Git sorts a folder as if its name ended with a slash.
    ordered = sorted(members, key=lambda member: member[0].encode() + (b"/" if member[1] == "40000" else b""))
    return b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, mode, oid in ordered)
