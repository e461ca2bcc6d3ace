"""The journal of a run: which units are finished, so that the same command goes on where it was stopped.

One line of JSON a unit, appended when its files are complete. It lies beside them, in the folder of the work.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mopeq_hub.quantization.stream import Unit
from mopeq_hub.workplace import JOURNAL


@dataclass(frozen=True)
class Finished:
    """An output file that is complete. sent: it is where it will be committed, and need not be here any more."""

    file: str
    nbytes: int
    sha256: str
    sent: bool = False


class Journal:
    """What earlier runs finished, and what this one does; `folder` is where the output files are."""

    def __init__(self, work: Path, folder: Path) -> None:
        self._path, self._folder = work / JOURNAL, folder
        self._finished: dict[str, tuple[Finished, ...]] = {}
        for line in self._path.read_text("utf-8").splitlines() if self._path.is_file() else ():
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._finished[entry["shard"]] = tuple(Finished(**file) for file in entry["files"])
        except (ValueError, KeyError, TypeError):
            # The last line of a run that was killed while it wrote: that unit is done again.
            return

    def forget(self) -> None:
        """Begin anew."""
        self._path.unlink(missing_ok=True)
        self._finished = {}

    def of(self, unit: Unit) -> tuple[Finished, ...] | None:
        """The files of a unit that was finished and still is: each was sent, or is here with the same contents."""
        files = self._finished.get(unit.shard)
        if files is None or [file.file for file in files] != [output.file for output in unit.outputs]:
            return None
        return files if all(file.sent or self._whole(file) for file in files) else None

    def finished(self, unit: Unit) -> tuple[Finished, ...]:
        """The files of a unit that this run finished or found finished. Raises KeyError where it is not."""
        return self._finished[unit.shard]

    def add(self, unit: Unit, files: Sequence[Finished]) -> None:
        """Remember a unit's files. What follows may rely on it, whatever happens to this process."""
        self._finished[unit.shard] = tuple(files)
        line = json.dumps({"shard": unit.shard, "files": [asdict(file) for file in files]}) + "\n"
        with open(self._path, "a", encoding="utf-8") as file:
            # A line that a killed run left unfinished is ended, so that this one stands alone.
            file.write(("\n" if file.tell() else "") + line)
            file.flush()
            os.fsync(file.fileno())

    def _whole(self, file: Finished) -> bool:
        path = self._folder / file.file
        return path.is_file() and path.stat().st_size == file.nbytes and digest(path) == file.sha256


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
