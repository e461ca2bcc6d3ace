"""Files that outlive a process: lines of JSON appended one by one, and what a file's bytes are known by."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PIECE = 1 << 24


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line. What follows may rely on it, whatever happens to this process."""
    with open(path, "a", encoding="utf-8") as file:
        # A line that a killed run left unfinished is ended, so that this one stands alone.
        file.write(("\n" if file.tell() else "") + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def entries(path: Path) -> Iterator[Any]:
    """What the lines say; nothing where there is no file. A line that a killed run left unfinished is passed over."""
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    # In large pieces: each gives other threads their turn, and waits for one.
    piece = memoryview(bytearray(min(_PIECE, path.stat().st_size)))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()
