"""What a run finds on its machine: where things are kept (one folder, `MOPEQ_HOME`), how much memory and disk is free,
and what computes."""

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mopeq_hub.errors import MopeqError

JOURNAL = "journal.jsonl"
"""In a kept folder: what is finished there."""
_KEPT = ".mopeq-kept-"
_LOCK = ".lock"
_KEPT_SECONDS = 14 * 24 * 3600
"""How long the work of a run that was stopped waits to be taken up again."""
_YOUNG_SECONDS = 60
"""A folder as young as this may be another run's that has not locked it yet."""


def home() -> Path:
    """`MOPEQ_HOME`, or mopeq-hub in the user's cache folder."""
    if "MOPEQ_HOME" in os.environ:
        return Path(os.environ["MOPEQ_HOME"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mopeq-hub"


def cache(name: str) -> Path:
    """A folder for what one run leaves for the next, by kind: profiles, the original's logits."""
    folder = home() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """A new folder that is gone at the end, however the end comes; `beside` puts it on the same disk as that path.

    What a killed run left where this one goes is taken away.
    """
    parent = beside.parent if beside else cache("work")
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=".mopeq-", dir=parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kept(key: str, beside: Path | None = None) -> Iterator[Path]:
    """The folder of a piece of work with this key: gone when the work is done; if that fails, kept for the next try
    where its journal says that there is something to go on from.

    Raises MopeqError where another run has it.
    """
    parent = beside.parent if beside else cache("work")
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder = parent / f"{_KEPT}{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        try:
            yield folder
        except BaseException:
            if not (folder / JOURNAL).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder is this run's as long as this lasts; the system takes the lock from a run that dies."""
    with open(folder / _LOCK, "w") as lock:
        if not _lock(lock):
            raise MopeqError("the same work is being done by another run", "wait for it to end, or stop it")
        yield


def _lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(parent: Path) -> None:
    """Take away what dead runs left: scratch folders at once, kept ones when nobody came back for long."""
    for folder in parent.glob(".mopeq-*"):
        lock = folder / _LOCK
        try:
            patience = _KEPT_SECONDS if folder.name.startswith(_KEPT) else _YOUNG_SECONDS
            if time.time() - lock.stat().st_mtime < patience:
                continue
            with open(lock, "r+") as held:
                if _lock(held):
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # Another run's, just made or just gone.
            continue


def free_disk(path: Path) -> int:
    """Bytes that may still be written below `path`, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def device(path: Path) -> int:
    """Which disk `path` is on, or will be."""
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def processor() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes of memory that this process may still take: what the machine has free, or a container's limit if less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return max(free, 0)


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of the second and the first version of control groups; `max` there means no limit."""
