"""Destinations: where a publication goes, a Hub repo or a folder, behind one small interface.

A publication appears in one commit or not at all. A folder is laid out as the repo would be (`DIR` is the model repo,
`DIR-space` its Space) and changes in one step.
"""

import ctypes
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from mopeq_hub import hub_client, workplace
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.manifest import FIDELITY_NAME, MANIFEST_NAME
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

    @property
    def folder(self) -> Path | None:
        """Its folder on this machine, None for the Hub."""

    def describe(self) -> str:
        """The name with its kind, for the first line that is printed."""

    def check_writable(self, *, space: bool) -> None:
        """Raises MopeqError where a publication or its Space could not be written, as far as can be known before."""

    def workplace(self) -> AbstractContextManager[Path]:
        """A folder to build in, on the disk where it matters."""

    def publication(self) -> str | None:
        """Name of the publication that is there now, whole; None where there is none, or a damaged one.

        Raises MopeqError where something else is, which must not be lost.
        """

    def read_text(self, name: str) -> str:
        """A text file of the model repo."""

    def local_copy(self) -> Path:
        """The model repo as a folder on this machine."""

    def tag(self, publication: str) -> None:
        """Give the commit that is there the publication's name."""

    def commit(self, folder: Path, publication: str, progress: Progress, *, consume: bool) -> str:
        """Make the model repo hold just the files of `folder`, in one commit tagged with the publication's name.

        consume: `folder` is not needed afterwards and may be moved. Returns the commit.
        """

    def has_space(self) -> bool: ...

    def model_for_space(self) -> str:
        """How the Space names the model."""

    def path_for_space(self, location: str | None) -> str | None:
        """How the Space names a folder of this machine, None where it could not reach it.

        location: None where it is not known now; what the Space names already is kept then.
        """

    def space_folder(self) -> Path | None:
        """The Space where it lies on this machine, ready to be run."""

    def commit_space(self, folder: Path, publication: str) -> str | None:
        """The same for the Space; None where it already held these files."""


class FolderDestination:
    """A folder and its `-space` sibling: the embedded stand-in for the Hub."""

    repo_id = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = self._folder = Path(name).expanduser().resolve()
        self._space = self._folder.with_name(self._folder.name + "-space")

    def describe(self) -> str:
        return f"the folder {self.name}"

    def check_writable(self, *, space: bool) -> None:
        parent = next(path for path in self._folder.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise MopeqError(f"{parent} cannot be written to", "choose another folder with --to")
        if os.path.ismount(self._folder) or Path.cwd().is_relative_to(self._folder):
            which = "a mount point" if os.path.ismount(self._folder) else "the current folder or above it"
            raise MopeqError(
                f"{self.name} is {which} and cannot be replaced whole", "name a folder inside it with --to"
            )
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
        manifest = _object((self._folder / MANIFEST_NAME).read_text("utf-8"))
        digests = {name: digest.hex() for name, digest in _contents(self._folder).items()}
        hidden = [path.name for path in self._folder.glob(".*")]
        foreign = sorted(set(digests) - _ours(digests, manifest)) + hidden
        if foreign:
            raise MopeqError(
                f"{self.name} holds {foreign[0]}, which is not part of its publication",
                "move it away, or choose another folder with --to",
            )
        return _whole(digests, manifest)

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
        if location:
            return os.path.relpath(location, self._space)
        if not self.has_space():
            return None
        original = _object((self._space / PUBLICATION_NAME).read_text("utf-8")).get("original")
        return original if isinstance(original, str) else None

    def space_folder(self) -> Path | None:
        return self._space if self.has_space() else None

    def commit_space(self, folder: Path, publication: str) -> str | None:
        if _contents(folder) == _contents(self._space):
            return None
        _replace(self._space, folder, consume=False)
        return publication


class HubDestination:
    """A model repo on the Hub and the Space of the same name."""

    folder = None

    def __init__(self, repo_id: str, *, private: bool = False) -> None:
        self.name = self.repo_id = repo_id
        self._private = private
        # Heads of the model repo and of the Space when they were last looked at: nothing but ours may follow them.
        self._seen: dict[str, str | None] = {}

    def describe(self) -> str:
        return f"the Hub repo {self.repo_id}"

    def check_writable(self, *, space: bool) -> None:
        hub_client.check_write_access(self.repo_id)
        files = set(self._files("space")) if space else set()
        if files - _HUB_OWN_FILES and PUBLICATION_NAME not in files:
            raise MopeqError(f"the Space {self.repo_id} is not a Space of ours", "choose another --to, or --no-space")

    def workplace(self) -> AbstractContextManager[Path]:
        return workplace.scratch()

    def publication(self) -> str | None:
        digests = self._files("model")
        if set(digests) <= _HUB_OWN_FILES:
            return None
        if MANIFEST_NAME not in digests:
            raise MopeqError(
                f"{self.repo_id} holds something that is not a publication", "choose another repo with --to"
            )
        return _whole(digests, _object(self.read_text(MANIFEST_NAME)))

    def read_text(self, name: str) -> str:
        with hub_client.hub_errors(f"{name} of {self.repo_id}"):
            return Path(hub_client.api().hf_hub_download(self.repo_id, name)).read_text("utf-8")

    def local_copy(self) -> Path:
        with hub_client.hub_errors(self.repo_id):
            return Path(hub_client.api().snapshot_download(self.repo_id))

    def tag(self, publication: str) -> None:
        self._tag(publication, self._head("model"))

    def _tag(self, publication: str, commit: str | None) -> None:
        api = hub_client.api()
        with hub_client.hub_errors(f"the tag {publication} of {self.repo_id}"):
            tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(self.repo_id).tags}
            if tags.get(publication) == commit:
                return
            if publication in tags:
                api.delete_tag(self.repo_id, tag=publication)
            api.create_tag(self.repo_id, tag=publication, revision=commit)

    def commit(self, folder: Path, publication: str, progress: Progress, *, consume: bool) -> str:
        commit = self._commit("model", folder, publication, progress)
        self._tag(publication, commit)
        return commit

    def has_space(self) -> bool:
        return "app.py" in self._files("space")

    def model_for_space(self) -> str:
        return self.repo_id

    def path_for_space(self, location: str | None) -> str | None:
        return None

    def space_folder(self) -> Path | None:
        return None

    def commit_space(self, folder: Path, publication: str) -> str | None:
        before = self._head("space")
        commit = self._commit("space", folder, publication, Quiet())
        return None if commit == before else commit

    def _head(self, kind: str) -> str | None:
        """The newest commit of the repo, None where there is no repo."""
        api = hub_client.api()
        with hub_client.hub_errors(self.repo_id):
            exists = api.repo_exists(self.repo_id, repo_type=kind)
            return api.repo_info(self.repo_id, repo_type=kind).sha if exists else None

    def _files(self, kind: str) -> dict[str, str | None]:
        """The repo's files at its newest commit, with their SHA-256 where the Hub knows it; none without a repo."""
        from huggingface_hub.hf_api import RepoFile

        head = self._seen[kind] = self._head(kind)
        if head is None:
            return {}
        with hub_client.hub_errors(self.repo_id):
            entries = list(hub_client.api().list_repo_tree(self.repo_id, repo_type=kind, revision=head, recursive=True))
        return {file.path: file.lfs.sha256 if file.lfs else None for file in entries if isinstance(file, RepoFile)}

    def _commit(self, kind: str, folder: Path, publication: str, progress: Progress) -> str:
        """One commit after which the repo holds the files of `folder`; its id, the old one if nothing changed.

        What an older publication left goes; files that somebody else put there stay. It is refused where the repo has
        changed since it was looked at. A repo that was made for it is taken away again if it fails.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        api, names = hub_client.api(), sorted(_contents(folder))
        head = self._seen[kind] if kind in self._seen else self._head(kind)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [*additions]
        if head is not None:
            stale = self._left_by_older(kind) - set(names) - _HUB_OWN_FILES
            operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
        with self._made(kind) if head is None else nullcontext(head) as parent, hub_client.hub_errors(self.repo_id):
            sizes = [(folder / name).stat().st_size for name in names]
            with progress.stage("upload", sum(sizes)) as advance:
                for addition, size in zip(additions, sizes, strict=True):
                    if size >= _WORTH_A_STEP:
                        api.preupload_lfs_files(self.repo_id, [addition], repo_type=kind)
                    advance(size)
            message = f"Publish {publication}"
            commit = api.create_commit(
                self.repo_id, operations, commit_message=message, repo_type=kind, parent_commit=parent
            )
        self._seen[kind] = commit.oid
        return commit.oid

    def _left_by_older(self, kind: str) -> set[str]:
        """The files that an older publication put there."""
        seen = self._seen.get(kind)
        present = self._files(kind)
        if seen is not None:
            # Looking again must not hide that somebody else was here in between.
            self._seen[kind] = seen
        if kind == "space" or MANIFEST_NAME not in present:
            return set(present)
        return _ours(present, _object(self.read_text(MANIFEST_NAME)))

    @contextmanager
    def _made(self, kind: str) -> Iterator[str | None]:
        """A new repo, which goes again if what follows fails and nobody else has put anything into it."""
        api = hub_client.api()
        with hub_client.hub_errors(self.repo_id):
            sdk = "gradio" if kind == "space" else None
            api.create_repo(self.repo_id, repo_type=kind, space_sdk=sdk, private=self._private)
        made = self._head(kind)
        try:
            yield made
        except BaseException:
            # The trouble that led here is what the user must hear of, whatever becomes of the empty repo.
            with suppress(MopeqError):
                if self._head(kind) == made:
                    with hub_client.hub_errors(self.repo_id):
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
    if not to:
        raise UsageError("the destination is empty", "name owner/name or a folder, or leave --to out")
    if not to.startswith((".", "/", "~")) and _REPO_ID.match(to) and not Path(to).exists():
        return HubDestination(to, private=private)
    return FolderDestination(to)


def _object(text: str) -> dict[str, Any]:
    """A JSON object that a stranger may have written; an empty one where it is something else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _ours(present: Iterable[str], manifest: dict[str, Any]) -> set[str]:
    """Those of the files present that a publication with this manifest consists of."""
    listed = manifest.get("files")
    named = {*(listed if isinstance(listed, dict) else ()), "README.md", FIDELITY_NAME, MANIFEST_NAME}
    return {name for name in present if name in named or re.fullmatch(r"plots/[\w-]+\.png", name)}


def _whole(digests: Mapping[str, str | None], manifest: dict[str, Any]) -> str | None:
    """The publication's name, if every file it describes is there, as it is described where the digest is known."""
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not {"README.md", FIDELITY_NAME} <= set(digests):
        return None
    for name, described in listed.items():
        if name not in digests or digests[name] not in (None, described.get("sha256")):
            return None
    return str(manifest.get("publication"))


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
    """Put the files of `folder` in the place of `target`, so that `target` is never half of anything."""
    with workplace.scratch(beside=target) as scratch:
        new = scratch / "new"
        if consume:
            shutil.move(folder, new)
        else:
            shutil.copytree(folder, new)
        for hidden in new.glob(".*"):
            shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
        if not target.exists() or not any(target.iterdir()):
            new.replace(target)
        elif not _exchange(new, target):
            # Without an exchange there is a moment without either; an interrupted one puts the old folder back.
            old = target.with_name(f".{target.name}.old")
            target.rename(old)
            try:
                new.rename(target)
            finally:
                if not target.exists():
                    old.rename(target)
            shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the disk cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return bool(libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
    except (OSError, AttributeError):
        return False
