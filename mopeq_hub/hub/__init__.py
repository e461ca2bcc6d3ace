"""Destinations: where a publication goes, a Hub repo or a folder, behind one small interface.

A publication appears in one commit or not at all. A folder is laid out as the repo would be (`DIR` is the model repo,
`DIR-space` its Space, `DIR@2.5bpw` its branch 2.5bpw) and changes in one step.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from mopeq_hub import hub_client
from mopeq_hub.errors import UsageError
from mopeq_hub.hub.folder import FolderDestination
from mopeq_hub.hub.published import Published
from mopeq_hub.hub.repo import HubDestination
from mopeq_hub.progress import Progress

MAIN = "main"
"""The branch that the name of a repo alone stands for."""
_REPO_ID = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*(@[\w-][\w./-]*)?$")


class Destination(Protocol):
    """Where one publication lives: the model repo and its Space."""

    @property
    def name(self) -> str:
        """As the user wrote it."""

    @property
    def repo_id(self) -> str | None:
        """owner/name on the Hub, None for a folder."""

    @property
    def branch(self) -> str | None:
        """Of which variant this is the branch, or the folder; None for main, which alone has a Space."""

    @property
    def account(self) -> str | None:
        """Whose token publishes there, once `check_writable` has asked; None for a folder."""

    @property
    def folder(self) -> Path | None:
        """Its folder on this machine, None for the Hub."""

    def describe(self) -> str:
        """The name with its kind, for the first line that is printed."""

    def variant(self, name: str) -> "Destination":
        """Where the variant of this name goes: a branch of the same repo, or a folder beside this one."""

    def address(self, branch: str | None) -> str | None:
        """What a card links to: the page of a branch, or of main."""

    def check_writable(self, *, space: bool) -> None:
        """Raises MopeqError where a publication or its Space could not be written, as far as can be known before."""

    def workplace(self, publication: str) -> AbstractContextManager[Path]:
        """A folder to build a publication in, on the disk where it matters; kept for the next try if it fails."""

    def publication(self) -> str | None:
        """Name of the publication that is there now, whole; None where there is none, or a damaged one.

        Raises MopeqError where something else is, which must not be lost.
        """

    def read_text(self, name: str) -> str:
        """A text file of the model repo."""

    def local_copy(self) -> Path:
        """The model repo as a folder on this machine."""

    def look(self, *, whole: bool = False) -> Published:
        """The model repo as it is there; whole: with all its files on this machine, weights included.

        Raises MopeqError where there is none.
        """

    def tag(self, publication: str) -> None:
        """Give the commit that is there the publication's name."""

    def commit(
        self, folder: Path, publication: str, progress: Progress, *, consume: bool, sent: Mapping[str, Any] = ...
    ) -> str:
        """Make the model repo hold just the files of `folder` and those sent before, in one commit tagged with the
        publication's name.

        consume: `folder` is not needed afterwards and may be moved. sent: `describe_files` of those files.
        Returns the commit.
        """

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


def destination_for(to: str | None, model: str, *, private: bool = False) -> Destination:
    """The destination that `to` names: a folder if it starts with `.`, `/` or `~` or exists, else owner/name[@branch]
    on the Hub.

    None chooses {account}/{name}-MoPEQ where a token is set, else ./published/{name}-MoPEQ.
    """
    if to is None:
        name = re.sub(r"[^\w.-]", "-", Path(model.partition("@")[0]).resolve().name) + "-MoPEQ"
        to = f"{hub_client.account()}/{name}" if hub_client.has_token() else f"./published/{name}"
    if not to:
        raise UsageError("the destination is empty", "name owner/name or a folder, or leave --to out")
    if not to.startswith((".", "/", "~")) and _REPO_ID.match(to) and not Path(to).exists():
        repo_id, _, branch = to.partition("@")
        return HubDestination(repo_id, branch or None, private=private)
    return FolderDestination(to)


__all__ = ["MAIN", "Destination", "FolderDestination", "HubDestination", "destination_for"]
