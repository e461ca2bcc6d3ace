"""Content-addressed files on disk, so that a test may move gigabytes without holding them in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 1024 * 1024


class DigestMismatch(ValueError):
    """What arrived is not what was announced."""


@dataclass(frozen=True)
class Blob:
    """One stored content."""

    sha256: str
    size: int


class BlobStore:
    """Keeps each distinct content once, under the name of its SHA-256."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._incoming = root / "incoming"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the content lies; callers pass only digests that came out of this store or were checked as hex."""
        return self._blobs / sha256[:2] / sha256

    def read(self, sha256: str) -> bytes:
        """The whole content: for small files and for asserts."""
        return self.path(sha256).read_bytes()

    def add(self, content: bytes) -> Blob:
        """Store a content that is already in memory."""
        return self.ingest([content])

    def add_file(self, source: Path) -> Blob:
        """Store a copy of a local file, read by chunks."""
        with source.open("rb") as stream:
            return self.ingest(read_chunks(stream))

    def ingest(self, chunks: Iterable[bytes], expected: Blob | None = None) -> Blob:
        """Write the chunks to disk while hashing; nothing is kept when they are not what ``expected`` announced."""
        digest, size = hashlib.sha256(), 0
        handle, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(handle, "wb") as stream:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    stream.write(chunk)
            blob = Blob(digest.hexdigest(), size)
            if expected is not None and blob != expected:
                raise DigestMismatch(_difference(expected, blob))
            target = self.path(blob.sha256)
            target.parent.mkdir(exist_ok=True)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return blob

    def part_path(self, ticket: str, number: int) -> Path:
        """Where one part of a multipart upload waits for its completion."""
        return self._incoming / f"{ticket}.{number}"


def read_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in pieces of bounded size."""
    while chunk := stream.read(CHUNK):
        yield chunk


def _difference(expected: Blob, received: Blob) -> str:
    if expected.size != received.size:
        return f"BadDigest: {expected.size} bytes were announced and {received.size} arrived"
    return f"BadDigest: sha256 {expected.sha256} was announced and {received.sha256} arrived"
