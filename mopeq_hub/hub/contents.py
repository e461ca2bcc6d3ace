"""What a destination holds: which files are a publication's own, and whether it is whole."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mopeq_hub.manifest import FIDELITY_NAME, MANIFEST_NAME


def read_object(text: str) -> dict[str, Any]:
    """A JSON object that a stranger may have written; an empty one where it is something else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def ours(present: Iterable[str], manifest: dict[str, Any]) -> set[str]:
    """Those of the files present that a publication with this manifest consists of."""
    listed = manifest.get("files")
    named = {*(listed if isinstance(listed, dict) else ()), "README.md", FIDELITY_NAME, MANIFEST_NAME}
    return {name for name in present if name in named or re.fullmatch(r"plots/[\w-]+\.png", name)}


def whole_publication(digests: Mapping[str, str | None], manifest: dict[str, Any]) -> str | None:
    """The publication's name, if every file it describes is there, as it is described where the digest is known."""
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not {"README.md", FIDELITY_NAME} <= set(digests):
        return None
    for name, described in listed.items():
        if name not in digests or digests[name] not in (None, described.get("sha256")):
            return None
    return str(manifest.get("publication"))


def contents(folder: Path) -> dict[str, bytes]:
    """The digests of a folder's files by name, without those that start with a dot."""
    found = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
            with open(path, "rb") as file:
                found[relative.as_posix()] = hashlib.file_digest(file, "sha256").digest()
    return found
