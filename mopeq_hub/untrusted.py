"""What strangers wrote: names of files, which may only point inside a repo; JSON and YAML, which may be anything."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from mopeq_hub.errors import MopeqError

TRUST = "--trust-remote-code"
"""The option by which a user lets code run that comes with a model."""
_MAX_YAML_BYTES = 200_000


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


def read_yaml_file(path: Path, what: str) -> Any:
    """The content of a YAML file of bounded size. Raises MopeqError, which begins with `what`, where there is none."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_YAML_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise MopeqError(f"{what} {path} cannot be read: {(error.strerror or '').lower()}", "check the name") from None
    except UnicodeDecodeError:
        raise MopeqError(f"{what} {path} is not UTF-8 text", "save it as UTF-8") from None
    return read_yaml(text, f"{what} {path}")


def read_yaml(text: str, where: str) -> Any:
    """Plain values out of YAML: no objects, and no aliases, with which a few lines become more than memory holds.

    Raises MopeqError, which begins with `where`, on what is not YAML or is too large.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise MopeqError(f"{where} uses an alias (*) in {_line(self.peek_event().start_mark)}", "write it out")
            return super().compose_node(parent, index)

    if len(text) > _MAX_YAML_BYTES:
        raise MopeqError(f"{where} has more than {_MAX_YAML_BYTES:,} bytes", "make several of it")
    try:
        return yaml.load(text, Loader=Plain)
    except yaml.MarkedYAMLError as error:
        place = f" in {_line(error.problem_mark)}" if error.problem_mark else ""
        raise MopeqError(f"{where} is not YAML{place}: {error.problem or error.context}", "correct it") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MopeqError(f"{where} is not YAML: {str(error)[:200]}", "correct it") from None


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}"
