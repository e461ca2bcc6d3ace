"""Which files go to LFS and which are ignored: the Hub's decisions before an upload."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_EXTENSIONS = (
    "7z arrow avro bin bz2 ckpt ftz gguf gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl"
    " pt pth rar safetensors tar.* tar tflite tgz wasm xz zip zst"
)
_PATTERNS = re.sub(r"(^| )", r"\1*.", _EXTENSIONS) + " saved_model/**/* *tfevents*"

DEFAULT_GITATTRIBUTES = re.sub(r"(\S+)\s*", r"\1 filter=lfs diff=lfs merge=lfs -text\n", _PATTERNS)


def belongs_in_lfs(path: str, size: int, sample: bytes, gitattributes: str | None, regular_limit: int) -> bool:
    """Whether a file is stored with LFS: by its name, by its size, or because it is not text."""
    if size == 0:
        return False
    rules = DEFAULT_GITATTRIBUTES if gitattributes is None else gitattributes
    return matches_lfs_rule(path, rules) or size > regular_limit or not _looks_like_text(sample)


def matches_lfs_rule(path: str, gitattributes: str) -> bool:
    """Whether the last rule that names the path gives it to LFS."""
    in_lfs = False
    for line in gitattributes.splitlines():
        pattern, *attributes = line.split() or [""]
        if pattern and not pattern.startswith("#") and _matches(path, pattern):
            in_lfs = "filter=lfs" in attributes or (in_lfs and not {"-filter", "!filter"} & set(attributes))
    return in_lfs


def is_ignored(path: str, gitignore: str | None) -> bool:
    """Whether a ``.gitignore`` excludes the path, itself or by one of its folders."""
    ignored = False
    for line in (gitignore or "").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        negated = pattern.startswith("!")
        if any(_matches(candidate, pattern.lstrip("!").rstrip("/")) for candidate in _candidates(path, pattern)):
            ignored = not negated
    return ignored


def _candidates(path: str, pattern: str) -> Iterable[str]:
    folders = [str(folder) for folder in PurePosixPath(path).parents if str(folder) != "."]
    return folders if pattern.endswith("/") else [path, *folders]


def _matches(path: str, pattern: str) -> bool:
    # A pattern without a slash speaks of names in any folder; with one, of the path from the root.
    if "/" not in pattern:
        return fnmatchcase(PurePosixPath(path).name, pattern)
    return fnmatchcase(path, pattern.lstrip("/").replace("**/*", "*"))


def _looks_like_text(sample: bytes) -> bool:
    # The sample may end inside a character, which an incremental decoder does not hold against it.
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample
