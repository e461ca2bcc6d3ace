"""Where things are kept between and during runs: one folder, `MOPEQ_HOME`, by default in the user's cache."""

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
