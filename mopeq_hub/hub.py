"""Destinations: where a publication goes, a Hub repo or a folder, behind one small interface.

A publication appears in one commit or not at all. A folder is laid out as the repo would be (`DIR` is the model repo,
`DIR-space` its Space) and changes by one rename.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from mopeq_hub import hub_client, workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.manifest import MANIFEST_NAME
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.space import PUBLICATION_NAME

_REPO_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")
_HUB_OWN_FILES = {".gitattributes", "README.md"}
"""What a repo may hold without anybody having put something there that must not be lost."""
_WORTH_A_STEP = 1_000_000
"""Bytes from which a file is uploaded by itself, before the commit, so that progress can be told."""


class Destination(Protocol):
    """Where one publication lives: the model repo and its Space."""

    @property
    def name(self) -> str:
        """As the user wrote it."""

    @property
    def repo_id(self) -> str | None:
        """owner/name on the Hub, None for a folder."""

    def describe(self) -> str:
        """The name with its kind, for the first line that is printed."""

    def check_writable(self, *, space: bool) -> None:
        """Raises MopeqError where a publication or its Space could not be written, as far as can be known before."""

    def workplace(self) -> AbstractContextManager[Path]:
        """A folder to build in, on the disk where it matters."""

    def publication(self) -> str | None:
        """Name of the publication that is there now, or None. Raises MopeqError where something else is."""

    def read_text(self, name: str) -> str:
        """A text file of the model repo."""

    def local_copy(self) -> Path:
        """The model repo as a folder on this machine."""

    def tag(self, publication: str) -> None:
        """Give the commit that is there the publication's name, unless a commit has it."""

    def commit(self, folder: Path, publication: str, progress: Progress, *, consume: bool) -> str:
        """Make the model repo hold just the files of `folder`, in one commit tagged with the publication's name.

        consume: `folder` is not needed afterwards and may be moved. Returns the commit.
        """

    def has_space(self) -> bool: ...

    def model_for_space(self) -> str:
        """How the Space names the model."""

    def path_for_space(self, location: str | None) -> str | None:
        """How the Space names a folder of this machine; None where it could not reach it."""

    def space_folder(self) -> Path | None:
        """The Space where it lies on this machine, ready to be run."""

    def commit_space(self, folder: Path, publication: str) -> str | None:
        """The same for the Space; None where it already held these files."""


class FolderDestination:
    """A folder and its `-space` sibling: the embedded stand-in for the Hub."""

    repo_id = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = Path(name).expanduser().resolve()
        self._space = self._folder.with_name(self._folder.name + "-space")

    def describe(self) -> str:
        return f"the folder {self.name}"

    def check_writable(self, *, space: bool) -> None:
        parent = next(path for path in self._folder.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise MopeqError(f"{parent} cannot be written to", "choose another folder with --to")
        if space and self._space.exists() and not (self._space / PUBLICATION_NAME).is_file():
            raise MopeqError(
                f"{self.name}-space holds something that is not a Space of ours", "choose another --to, or --no-space"
            )

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        with workplace.scratch(beside=self._folder) as folder:
            yield folder

    def publication(self) -> str | None:
        if not self._folder.exists() or (self._folder.is_dir() and not any(self._folder.iterdir())):
            return None
        if not (self._folder / MANIFEST_NAME).is_file():
            raise MopeqError(
                f"{self.name} holds something that is not a publication", "choose another folder with --to"
            )
        return _publication_in((self._folder / MANIFEST_NAME).read_text("utf-8"))

    def read_text(self, name: str) -> str:
        try:
            return (self._folder / name).read_text("utf-8")
        except OSError:
            raise MopeqError(f"{self.name} has no {name}", "publish it first") from None

    def local_copy(self) -> Path:
        if not self._folder.is_dir():
            raise MopeqError(f"{self.name} does not exist", "check the name, or publish it first")
        return self._folder

    def tag(self, publication: str) -> None:
        """A folder needs none: its manifest has the name."""

    def commit(self, folder: Path, publication: str, progress: Progress, *, consume: bool) -> str:
        _replace(self._folder, folder, consume)
        return publication

    def has_space(self) -> bool:
        return (self._space / "app.py").is_file()

    def model_for_space(self) -> str:
        # Relative, so that the two folders can be moved together.
        return f"../{self._folder.name}"

    def path_for_space(self, location: str | None) -> str | None:
        return os.path.relpath(location, self._space) if location else None

    def space_folder(self) -> Path | None:
        return self._space if self.has_space() else None

    def commit_space(self, folder: Path, publication: str) -> str | None:
        if _contents(folder) == _contents(self._space):
            return None
        _replace(self._space, folder, consume=False)
        return publication


class HubDestination:
    """A model repo on the Hub and the Space of the same name."""

    def __init__(self, repo_id: str, *, private: bool = False) -> None:
        self.name = self.repo_id = repo_id
        self._private = private

    def describe(self) -> str:
        return f"the Hub repo {self.repo_id}"

    def check_writable(self, *, space: bool) -> None:
        hub_client.check_write_access(self.repo_id)
        files = set(self._files("space") or []) if space else set()
        if files - _HUB_OWN_FILES and PUBLICATION_NAME not in files:
            raise MopeqError(f"the Space {self.repo_id} is not a Space of ours", "choose another --to, or --no-space")

    def workplace(self) -> AbstractContextManager[Path]:
        return workplace.scratch()

    def publication(self) -> str | None:
        files = self._files("model")
        if files is None or set(files) <= _HUB_OWN_FILES:
            return None
        if MANIFEST_NAME not in files:
            raise MopeqError(
                f"{self.repo_id} holds something that is not a publication", "choose another repo with --to"
            )
        return _publication_in(self.read_text(MANIFEST_NAME))

    def read_text(self, name: str) -> str:
        with hub_client.hub_errors(f"{name} of {self.repo_id}"):
            return Path(hub_client.api().hf_hub_download(self.repo_id, name)).read_text("utf-8")

    def local_copy(self) -> Path:
        with hub_client.hub_errors(self.repo_id):
            return Path(hub_client.api().snapshot_download(self.repo_id))

    def tag(self, publication: str) -> None:
        with hub_client.hub_errors(f"the tag {publication} of {self.repo_id}"):
            hub_client.api().create_tag(self.repo_id, tag=publication, exist_ok=True)

    def commit(self, folder: Path, publication: str, progress: Progress, *, consume: bool) -> str:
        commit = self._commit("model", folder, publication, progress)
        self.tag(publication)
        return commit

    def has_space(self) -> bool:
        return "app.py" in (self._files("space") or [])

    def model_for_space(self) -> str:
        return self.repo_id

    def path_for_space(self, location: str | None) -> str | None:
        return None

    def space_folder(self) -> Path | None:
        return None

    def commit_space(self, folder: Path, publication: str) -> str | None:
        head = self._head("space") if self.has_space() else None
        commit = self._commit("space", folder, publication, Quiet())
        return None if commit == head else commit

    def _files(self, kind: str) -> list[str] | None:
        """The repo's files, or None where there is no such repo."""
        with hub_client.hub_errors(self.repo_id):
            api = hub_client.api()
            return (
                api.list_repo_files(self.repo_id, repo_type=kind)
                if api.repo_exists(self.repo_id, repo_type=kind)
                else None
            )

    def _head(self, kind: str) -> str | None:
        with hub_client.hub_errors(self.repo_id):
            return hub_client.api().repo_info(self.repo_id, repo_type=kind).sha

    def _commit(self, kind: str, folder: Path, publication: str, progress: Progress) -> str:
        """One commit after which the repo holds just the files of `folder`; its id, the old one if nothing changed.

        A repo that was made for it is taken away again if it fails.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        api, present, files = hub_client.api(), self._files(kind), _contents(folder)
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in sorted(files)
        ]
        stale = sorted(set(present or []) - set(files) - _HUB_OWN_FILES)
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [*additions]
        operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
        try:
            with hub_client.hub_errors(self.repo_id):
                if present is None:
                    sdk = "gradio" if kind == "space" else None
                    api.create_repo(self.repo_id, repo_type=kind, space_sdk=sdk, private=self._private, exist_ok=True)
                head = self._head(kind)
                sizes = [(folder / addition.path_in_repo).stat().st_size for addition in additions]
                with progress.stage("upload", sum(sizes)) as advance:
                    for addition, size in zip(additions, sizes, strict=True):
                        if size >= _WORTH_A_STEP:
                            api.preupload_lfs_files(self.repo_id, [addition], repo_type=kind)
                        advance(size)
                message = f"Publish {publication}"
                return api.create_commit(
                    self.repo_id, operations, commit_message=message, repo_type=kind, parent_commit=head
                ).oid
        except BaseException:
            if present is None:
                api.delete_repo(self.repo_id, repo_type=kind, missing_ok=True)
            raise


def destination_for(to: str | None, model: str, *, private: bool = False) -> Destination:
    """The destination that `to` names: a folder if it starts with `.`, `/` or `~` or exists, else owner/name on the
    Hub.

    None chooses {account}/{name}-MoPEQ where a token is set, else ./published/{name}-MoPEQ.
    """
    if to is None:
        name = re.sub(r"[^\w.-]", "-", Path(model.partition("@")[0]).resolve().name) + "-MoPEQ"
        to = f"{hub_client.account()}/{name}" if hub_client.has_token() else f"./published/{name}"
    if not to.startswith((".", "/", "~")) and _REPO_ID.match(to) and not Path(to).exists():
        return HubDestination(to, private=private)
    return FolderDestination(to)


def _publication_in(text: str) -> str | None:
    try:
        return str(json.loads(text)["publication"])
    except (ValueError, KeyError, TypeError):
        return None


def _contents(folder: Path) -> dict[str, bytes]:
    """The digests of a folder's files by name, without those that start with a dot."""
    import hashlib

    found = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
            with open(path, "rb") as file:
                found[relative.as_posix()] = hashlib.file_digest(file, "sha256").digest()
    return found


def _replace(target: Path, folder: Path, consume: bool) -> None:
    """Put the files of `folder` in the place of `target` by renaming, so that `target` is never half of anything."""
    with workplace.scratch(beside=target) as scratch:
        new, old = scratch / "new", scratch / "old"
        if consume:
            shutil.move(folder, new)
        else:
            shutil.copytree(folder, new)
        for hidden in new.glob(".*"):
            shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
