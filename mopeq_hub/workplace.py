"""What a run finds on its machine: where things are kept (one folder, `MOPEQ_HOME`) and how much memory is free."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """A new folder that is gone at the end, however the end comes; `beside` puts it on the same disk as that path."""
    parent = beside.parent if beside else cache("work")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".mopeq-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
