"""The journal of a run: which units are finished, so that the same command goes on where it was stopped.

One line of JSON a unit, appended when its files are complete. It lies beside them, in the folder of the work.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mopeq_hub.quantization.stream import Unit
from mopeq_hub.records import append, entries, sha256_of
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
        for entry in entries(self._path):
            with suppress(KeyError, TypeError):
                self._finished[entry["shard"]] = tuple(Finished(**file) for file in entry["files"])

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
        append(self._path, {"shard": unit.shard, "files": [asdict(file) for file in files]})

    def _whole(self, file: Finished) -> bool:
        path = self._folder / file.file
        return path.is_file() and path.stat().st_size == file.nbytes and sha256_of(path) == file.sha256
