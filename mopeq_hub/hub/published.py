"""A publication where it lies, to be looked at: what its files are, without having the weights of a repo come here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mopeq_hub.manifest import MANIFEST_NAME
from mopeq_hub.records import sha256_of
from mopeq_hub.source import FolderSource, HubSource


class Published:
    """The files of a folder, or of a repo at the newest commit of a branch.

    source: reads heads of files. names: of all files, hidden ones too.
    """

    def __init__(self, source: FolderSource | HubSource, names: set[str], known: Mapping[str, Any]) -> None:
        """known: what `describe` says of some files, without their being read."""
        self.source, self.names, self._described = source, names, dict(known)

    @classmethod
    def in_folder(cls, folder: Path) -> "Published":
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return cls(FolderSource(folder), names, {})

    @classmethod
    def on_hub(cls, repo_id: str, revision: str | None = None) -> "Published":
        """Raises MopeqError where there is no such repo or revision. The Hub is believed what it says of its large
        files."""
        source = HubSource(repo_id, revision)
        sizes = source.files()
        known = {name: {"sha256": digest, "bytes": sizes[name]} for name, digest in source.digests.items()}
        return cls(source, set(sizes), known)

    def describe(self, name: str) -> dict[str, Any]:
        """SHA-256 and size of a file, which comes here if they are not known otherwise."""
        if name not in self._described:
            path = self.source.path(name)
            self._described[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        return self._described[name]

    def folder(self, *names: str) -> Path:
        """A folder on this machine with those of the named files that are there, and the manifest."""
        for name in names:
            if name in self.names:
                self.source.path(name)
        return self.source.path(MANIFEST_NAME).parent
