"""Names that strangers chose: files of a repo may only point inside it."""

from pathlib import PurePosixPath

from mopeq_hub.errors import MopeqError


def check_name(name: str, where: str) -> str:
    """`name` if it stays inside its repo. Raises MopeqError on an absolute path, `..` or a control character."""
    path = PurePosixPath(name)
    parts_outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    if not name or parts_outside or not name.isprintable():
        raise MopeqError(f"{where} names a file {name!r} that points outside the repo", "do not use this source")
    return name
