"""What strangers wrote: names of files, which may only point inside a repo, and JSON, which may be anything."""

import json
from pathlib import PurePosixPath
from typing import Any

from mopeq_hub.errors import MopeqError


def check_name(name: str, where: str) -> str:
    """`name` if it stays inside its repo. Raises MopeqError on an absolute path, `..` or a control character."""
    path = PurePosixPath(name)
    parts_outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    if not name or parts_outside or not name.isprintable():
        raise MopeqError(f"{where} names a file {name!r} that points outside the repo", "do not use this source")
    return name


def read_object(text: str) -> dict[str, Any]:
    """A JSON object that a stranger may have written; an empty one where it is something else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
