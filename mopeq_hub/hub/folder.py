"""A folder as a destination, laid out as on the Hub; it changes in one step."""

import ctypes
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.hub.contents import contents, ours, whole_publication
from mopeq_hub.hub.published import Published
from mopeq_hub.manifest import MANIFEST_NAME
from mopeq_hub.progress import Progress
from mopeq_hub.space import PUBLICATION_NAME
from mopeq_hub.untrusted import read_object
from mopeq_hub.version import __version__


class FolderDestination:
    """A folder and its `-space` sibling: the embedded stand-in for the Hub. What is a branch there is a sibling here,
    `NAME@BRANCH`."""

    repo_id = account = None

    def __init__(self, name: str, branch: str | None = None) -> None:
        """branch: of which variant of NAME this is the folder, None where it is not known to be one."""
        self.name, self.branch = name, branch
        self.folder = self._folder = Path(name).expanduser().resolve()
        self._space = self._folder.with_name(self._folder.name + "-space")

    def describe(self) -> str:
        return f"the folder {self.name}"

    def variant(self, name: str) -> "FolderDestination":
        return FolderDestination(f"{self.name.rstrip('/')}@{name}", name)

    def address(self, branch: str | None) -> str | None:
        # Relative, so that all of them can be moved together.
        main = self._folder.name.removesuffix(f"@{self.branch}" if self.branch else "")
        return "../" + quote(f"{main}@{branch}" if branch else main) + "/README.md"

    def check_writable(self, *, space: bool) -> None:
        parent = next(path for path in self._folder.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise MopeqError(f"{parent} cannot be written to", "choose another folder")
        if os.path.ismount(self._folder) or Path.cwd().is_relative_to(self._folder):
            which = "a mount point" if os.path.ismount(self._folder) else "the current folder or above it"
            raise MopeqError(
                f"{self.name} is {which} and cannot be replaced whole", "name a folder inside it with --to"
            )
        if space and self._space.exists() and not (self._space / PUBLICATION_NAME).is_file():
            raise MopeqError(
                f"{self.name}-space holds something that is not a Space of ours", "choose another --to, or --no-space"
            )

    def workplace(self, publication: str) -> AbstractContextManager[Path]:
        return workplace.kept(f"{self._folder} {publication} {__version__}", beside=self._folder)

    def publication(self) -> str | None:
        if not self._folder.exists() or (self._folder.is_dir() and not any(self._folder.iterdir())):
            return None
        if not (self._folder / MANIFEST_NAME).is_file():
            raise MopeqError(f"{self.name} holds something that is not a publication", "choose another folder")
        manifest = read_object((self._folder / MANIFEST_NAME).read_text("utf-8"))
        digests = contents(self._folder)
        hidden = [path.name for path in self._folder.glob(".*")]
        foreign = sorted(set(digests) - ours(digests, manifest)) + hidden
        if foreign:
            raise MopeqError(
                f"{self.name} holds {foreign[0]}, which is not part of its publication",
                "move it away, or choose another folder",
            )
        return whole_publication(digests, manifest)

    def read_text(self, name: str) -> str:
        try:
            return (self._folder / name).read_text("utf-8")
        except OSError:
            raise MopeqError(f"{self.name} has no {name}", "publish it first") from None

    def local_copy(self) -> Path:
        if not self._folder.is_dir():
            raise MopeqError(f"{self.name} does not exist", "check the name, or publish it first")
        return self._folder

    def look(self, *, whole: bool = False) -> Published:
        return Published.in_folder(self.local_copy())

    def tag(self, publication: str) -> None:
        """A folder needs none: its manifest has the name."""

    def commit(
        self,
        folder: Path,
        publication: str,
        progress: Progress,
        *,
        consume: bool,
        sent: Mapping[str, Any] | None = None,
    ) -> str:
        _replace(self._folder, folder, consume)
        return publication

    def model_for_space(self) -> str:
        # Relative, so that the two folders can be moved together.
        return f"../{self._folder.name}"

    def path_for_space(self, location: str | None) -> str | None:
        if location:
            return os.path.relpath(location, self._space)
        if self.space_folder() is None:
            return None
        original = read_object((self._space / PUBLICATION_NAME).read_text("utf-8")).get("original")
        return original if isinstance(original, str) else None

    def space_folder(self) -> Path | None:
        return self._space if (self._space / "app.py").is_file() else None

    def commit_space(self, folder: Path, publication: str) -> str | None:
        if contents(folder) == contents(self._space):
            return None
        _replace(self._space, folder, consume=False)
        return publication


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
