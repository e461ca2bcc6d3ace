"""What a destination holds or is to hold: which files are a publication's own, and whether it is whole."""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mopeq_hub.manifest import FIDELITY_NAME, MANIFEST_NAME, SIGNATURE_NAME, describe_files


def ours(present: Iterable[str], manifest: dict[str, Any]) -> set[str]:
    """Those of the files present that a publication with this manifest consists of."""
    listed = manifest.get("files")
    described = listed if isinstance(listed, dict) else ()
    named = {*described, "README.md", FIDELITY_NAME, MANIFEST_NAME, SIGNATURE_NAME}
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


def staged(folder: Path, manifest: dict[str, Any], stage: Path) -> Path:
    """`stage` with what is published of a quantized folder, which stays as it is: links to its files, and copies of
    those that may be written anew. A signature is left out, since it is of what was published before."""
    names = [name for name in file_names(folder) if name != SIGNATURE_NAME]
    written_anew = ours(names, manifest) - set(manifest["files"])
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        if name in written_anew:
            shutil.copyfile(folder / name, stage / name)
        else:
            (stage / name).symlink_to((folder / name).resolve())
    return stage


def file_names(folder: Path) -> list[str]:
    """A folder's files, in order, without those that start with a dot and what running an app leaves."""
    relative = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    shown = [path for path in relative if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)]
    return sorted(path.as_posix() for path in shown)


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256, in hex, of those files by name."""
    return {name: described["sha256"] for name, described in describe_files(folder, file_names(folder)).items()}
