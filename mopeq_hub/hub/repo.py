"""A Hub repo and its Space as a destination; each changes in one commit."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.lfs import UploadInfo

from mopeq_hub import hub_client, workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.hub.contents import file_names, ours, whole_publication
from mopeq_hub.hub.published import Published
from mopeq_hub.manifest import MANIFEST_NAME
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.space import PUBLICATION_NAME
from mopeq_hub.untrusted import read_object
from mopeq_hub.version import __version__

_HUB_OWN_FILES = {".gitattributes", "README.md"}
"""What a repo may hold without anybody having put something there that must not be lost."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_WORTH_A_STEP = 1_000_000
"""Bytes from which a file is uploaded by itself, before the commit, so that progress can be told."""


class HubDestination:
    """A model repo on the Hub, at main or at a branch, and the Space of the same name."""

    folder = None
    account: str | None = None

    def __init__(self, repo_id: str, branch: str | None = None, *, private: bool = False) -> None:
        """branch: that what is published goes to, made where there is none; None for main. To be read it may be any
        revision."""
        self.repo_id, self.branch = repo_id, branch
        self.name = f"{repo_id}@{branch}" if branch else repo_id
        self._private = private
        # Heads of the model repo and of the Space when they were last looked at: nothing but ours may follow them.
        self._seen: dict[str, str | None] = {}

    def describe(self) -> str:
        return f"the Hub repo {self.name}"

    def variant(self, name: str) -> "HubDestination":
        return HubDestination(self.repo_id, name, private=self._private)

    def address(self, branch: str | None) -> str | None:
        page = f"https://huggingface.co/{self.repo_id}"
        return f"{page}/tree/{branch}" if branch else page

    def check_writable(self, *, space: bool) -> None:
        self.account = hub_client.check_write_access(self.repo_id)
        files = set(self._files("space")) if space and not self.branch else set()
        if files - _HUB_OWN_FILES and PUBLICATION_NAME not in files:
            raise MopeqError(f"the Space {self.repo_id} is not a Space of ours", "choose another --to, or --no-space")

    def workplace(self, publication: str) -> AbstractContextManager[Path]:
        return workplace.kept(f"{self.name} {publication} {__version__}")

    def publication(self) -> str | None:
        digests = self._files("model")
        if set(digests) <= _HUB_OWN_FILES:
            return None
        if MANIFEST_NAME not in digests:
            raise MopeqError(f"{self.name} holds something that is not a publication", "choose another repo with --to")
        return whole_publication(digests, read_object(self.read_text(MANIFEST_NAME)))

    def read_text(self, name: str) -> str:
        with hub_client.hub_errors(f"{name} of {self.name}"):
            return Path(hub_client.api().hf_hub_download(self.repo_id, name, revision=self.branch)).read_text("utf-8")

    def local_copy(self) -> Path:
        with hub_client.hub_errors(self.name):
            return Path(hub_client.api().snapshot_download(self.repo_id, revision=self.branch))

    def look(self, *, whole: bool = False) -> Published:
        return Published.in_folder(self.local_copy()) if whole else Published.on_hub(self.repo_id, self.branch)

    def tag(self, publication: str) -> None:
        self._tag(publication, self._head("model"))

    def _tag(self, publication: str, commit: str | None) -> None:
        """Where main holds the same publication as this branch, main's commit keeps the tag: its card says more."""
        api = hub_client.api()
        with hub_client.hub_errors(f"the tag {publication} of {self.repo_id}"):
            refs = api.list_repo_refs(self.repo_id)
            tags = {tag.name: tag.target_commit for tag in refs.tags}
            heads = {branch.name: branch.target_commit for branch in refs.branches}
            if publication in tags and tags[publication] in (commit, heads.get("main")):
                return
            if publication in tags:
                api.delete_tag(self.repo_id, tag=publication)
            api.create_tag(self.repo_id, tag=publication, revision=commit)

    def prepare(self) -> None:
        """Have a repo that files can be sent to."""
        api = hub_client.api()
        with hub_client.hub_errors(self.repo_id):
            if api.repo_exists(self.repo_id):
                return
            api.create_repo(self.repo_id, private=self._private)
        self._seen["model"] = self._head("model")

    def send(self, path: Path, sha256: str) -> None:
        """Upload a file of the commit to come; nobody sees it before. From other processes only after `prepare`."""
        api = hub_client.api()
        self.prepare()
        with hub_client.hub_errors(self.repo_id):
            addition = CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=str(path))
            addition.upload_info.sha256 = bytes.fromhex(sha256)
            api.preupload_lfs_files(self.repo_id, [addition])

    def commit(
        self, folder: Path, publication: str, progress: Progress, *, consume: bool, sent: Mapping[str, Any] = _NOTHING
    ) -> str:
        commit = self._commit("model", folder, publication, progress, sent)
        self._tag(publication, commit)
        return commit

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
        """The newest commit, None where there is no repo or no such branch."""
        from huggingface_hub.errors import RevisionNotFoundError

        api = hub_client.api()
        with hub_client.hub_errors(self.repo_id), suppress(RevisionNotFoundError):
            if api.repo_exists(self.repo_id, repo_type=kind):
                return api.repo_info(self.repo_id, repo_type=kind, revision=self._revision(kind)).sha
        return None

    def _revision(self, kind: str) -> str | None:
        """The branch of the model repo; a Space has main alone."""
        return self.branch if kind == "model" else None

    def _files(self, kind: str) -> dict[str, str | None]:
        """The repo's files at its newest commit, with their SHA-256 where the Hub knows it; none without a repo."""
        from huggingface_hub.hf_api import RepoFile

        head = self._seen[kind] = self._head(kind)
        if head is None:
            return {}
        with hub_client.hub_errors(self.repo_id):
            entries = list(hub_client.api().list_repo_tree(self.repo_id, repo_type=kind, revision=head, recursive=True))
        return {file.path: file.lfs.sha256 if file.lfs else None for file in entries if isinstance(file, RepoFile)}

    def _commit(
        self, kind: str, folder: Path, publication: str, progress: Progress, sent: Mapping[str, Any] = _NOTHING
    ) -> str:
        """One commit after which the repo holds the files of `folder`; its id, the old one if nothing changed.

        What an older publication left goes; files that somebody else put there stay. It is refused where the repo has
        changed since it was looked at. A repo that was made for it is taken away again if it fails.
        """
        api, names, revision = hub_client.api(), file_names(folder), self._revision(kind)
        head = self._seen[kind] if kind in self._seen else self._head(kind)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
        uploaded = [_uploaded(name, described) for name, described in sent.items()]
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [*additions, *uploaded]
        with self._made(kind) if head is None else nullcontext(head) as parent, hub_client.hub_errors(self.repo_id):
            stale = self._left_by_older(kind) - set(names) - set(sent) - _HUB_OWN_FILES
            operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(stale)]
            sizes = [(folder / name).stat().st_size for name in names]
            with progress.stage("upload", sum(sizes)) as advance:
                for addition, size in zip(additions, sizes, strict=True):
                    if size >= _WORTH_A_STEP:
                        api.preupload_lfs_files(self.repo_id, [addition], repo_type=kind, revision=revision)
                    advance(size)
            message = f"Publish {publication}"
            commit = api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                repo_type=kind,
                revision=revision,
                parent_commit=parent,
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
        return ours(present, read_object(self.read_text(MANIFEST_NAME)))

    @contextmanager
    def _made(self, kind: str) -> Iterator[str | None]:
        """A new repo or branch, which goes again if what follows fails and nobody else has put anything into it."""
        api, branch = hub_client.api(), self._revision(kind)
        with hub_client.hub_errors(self.repo_id):
            repo_is_new = branch is None or not api.repo_exists(self.repo_id, repo_type=kind)
            if repo_is_new:
                sdk = "gradio" if kind == "space" else None
                api.create_repo(self.repo_id, repo_type=kind, space_sdk=sdk, private=self._private)
            # A branch begins at the first commit, the Hub's own: nothing that main holds belongs to the variant.
            made = api.list_repo_commits(self.repo_id, repo_type=kind)[-1].commit_id
        try:
            if branch:
                with hub_client.hub_errors(self.name):
                    api.create_branch(self.repo_id, branch=branch, revision=made)
            yield made
        except BaseException:
            # The trouble that led here is what the user must hear of, whatever becomes of the empty repo or branch.
            with suppress(MopeqError):
                self._take_away(kind, made, whole=repo_is_new)
            raise

    def _take_away(self, kind: str, made: str, *, whole: bool) -> None:
        """Delete the branch, or the whole repo, if it still is as it was made."""
        api, branch = hub_client.api(), self._revision(kind)
        with hub_client.hub_errors(self.name):
            refs = api.list_repo_refs(self.repo_id, repo_type=kind)
            heads = {each.name: each.target_commit for each in refs.branches}
            if whole and set(heads.values()) == {made}:
                api.delete_repo(self.repo_id, repo_type=kind, missing_ok=True)
            elif branch and heads.get(branch) == made:
                api.delete_branch(self.repo_id, branch=branch)


def _uploaded(name: str, described: dict[str, Any]) -> CommitOperationAdd:
    """The addition of a file that was sent before, by this run or by one that was stopped.

    The client makes one from the file alone, which is gone by now; it remembers uploads on the object, for which it has
    no public way of making one again.
    """
    addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=b"")
    addition.upload_info = UploadInfo(described["bytes"], b"", bytes.fromhex(described["sha256"]))
    addition._upload_mode, addition._should_ignore, addition._is_uploaded = "lfs", False, True
    return addition
