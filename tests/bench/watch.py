"""A command run to its end, or stopped at its time limit, while its memory and disk are watched."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PERIOD, _SLOW_PERIOD = 0.05, 1.0
_LAST_WORDS, _LAST_LINE = 2000, 120


@dataclass(frozen=True)
class Watched:
    """Peaks in bytes, of the whole tree of processes: rss counts mapped files too, and what processes share more than
    once; anonymous does not count files. disk: of the watched folders, above what was in them at the start.
    """

    seconds: float
    rss: int
    anonymous: int
    disk: int
    status: int
    stopped: bool
    words: str

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.stopped:
            reached = re.findall(r"\d+%", self.words)
            return f"stopped after {self.seconds / 60:.3g} min at {reached[-1] if reached else 'an unknown point'}"
        last = next((line for line in reversed(self.words.splitlines()) if line.strip()), "")
        return "done" if self.status == 0 else f"failed: {last.strip()[:_LAST_LINE]}"


def watch(
    command: Sequence[str], environment: dict[str, str], folders: Sequence[Path], cwd: Path, limit: float
) -> Watched:
    """Run it in `cwd`. Its output is kept only for its last words."""
    before = {folder: _allocated(folder) for folder in folders}
    peaks = {"rss": 0, "anonymous": 0, "disk": 0}
    log = cwd / "words.log"
    with open(log, "w+b") as words:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command), env=environment, cwd=cwd, stdout=words, stderr=words, start_new_session=True
        )
        over = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, before, peaks, over))
        sampler.start()
        try:
            status, stopped = process.wait(limit), False
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            seconds = time.perf_counter() - started
            _end(process)
            over.set()
            sampler.join()
        if stopped:
            status = -1
        words.seek(0, os.SEEK_END)
        words.seek(max(0, words.tell() - _LAST_WORDS))
        last = words.read().decode("utf-8", errors="replace").replace("\r", "\n")
    log.unlink()
    return Watched(seconds, **peaks, status=status, stopped=stopped, words=last)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The process and all that it started, which are a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _sample(pid: int, before: dict[Path, int], peaks: dict[str, int], over: threading.Event) -> None:
    """Often enough for peaks, seldom enough to take no time from what is watched."""
    looked, tree = 0.0, [pid]
    while not over.wait(_PERIOD):
        if time.perf_counter() - looked > _SLOW_PERIOD:
            tree = _tree(pid)
            peaks["disk"] = max(peaks["disk"], _grown(before))
            looked = time.perf_counter()
        rss, anonymous = _memory(tree)
        peaks["rss"], peaks["anonymous"] = max(peaks["rss"], rss), max(peaks["anonymous"], anonymous)
    peaks["disk"] = max(peaks["disk"], _grown(before))


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def _memory(tree: list[int]) -> tuple[int, int]:
    """Resident and anonymous bytes of these processes."""
    resident = anonymous = 0
    for each in tree:
        try:
            lines = Path(f"/proc/{each}/status").read_text("utf-8").splitlines()
        except OSError:
            continue
        values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
        resident += 1024 * int(values.get("VmRSS", 0))
        anonymous += 1024 * int(values.get("RssAnon", 0))
    return resident, anonymous


def _grown(before: dict[Path, int]) -> int:
    return sum(_allocated(folder) - size for folder, size in before.items())


def _allocated(folder: Path) -> int:
    """Bytes of disk that the files below a folder take, a file of several names once."""
    blocks: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:
                # Gone since it was listed.
                continue
            blocks[found.st_dev, found.st_ino] = 512 * found.st_blocks
    return sum(blocks.values())
