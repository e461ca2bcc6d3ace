"""Where a publication comes from: who published it, when, and in which run. Written when it goes to its destination.

Not before: what `quantize` leaves is the same bytes whoever runs it, whenever. The versions it was made with are in the
manifest anyway.
"""

import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.manifest import MANIFEST_NAME, read_manifest, write_json

_EPOCH = "SOURCE_DATE_EPOCH"
_GITHUB = (
    ("GITHUB_SERVER_URL", r"https://[A-Za-z0-9.-]+(:\d+)?"),
    ("GITHUB_REPOSITORY", r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+"),
    ("GITHUB_RUN_ID", r"\d+"),
)
_ACCOUNT = re.compile(r"[A-Za-z0-9_.-]+")
_HUB_JOB = re.compile(r"[0-9a-f]{24}")


def record(folder: Path, who: str | None) -> dict[str, Any]:
    """Write into a folder's mopeq.json that it is published now, by `who`, in this run; the manifest it then holds.

    who: an account on the Hub, None where the publication does not go there.
    """
    manifest = {**read_manifest(folder), "provenance": {"who": who, "when": moment(), "run": run(who)}}
    write_json(folder / MANIFEST_NAME, manifest, "mopeq")
    return manifest


def moment() -> str:
    """Now, or the time that SOURCE_DATE_EPOCH sets for everything that is made; UTC, ISO 8601, seconds.

    Raises MopeqError where that is not a time.
    """
    given = os.environ.get(_EPOCH) or str(int(time.time()))
    try:
        return datetime.fromtimestamp(int(given), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise MopeqError(
            f"{_EPOCH} {given!r} is not a time", "set it to whole seconds since 1970, or unset it"
        ) from None


def run(who: str | None) -> str | None:
    """The page of the GitHub Actions run or the job on the Hub that this process is; None where it is neither.

    who: whose job it is, if it is one.
    """
    values = [os.environ.get(name, "") for name, _ in _GITHUB]
    if all(re.fullmatch(form, value) for (_, form), value in zip(_GITHUB, values, strict=True)):
        return "{}/{}/actions/runs/{}".format(*values)
    # A job is told its number and its machine, but not whose it is.
    job = os.environ.get("JOB_ID", "")
    if who and _ACCOUNT.fullmatch(who) and _HUB_JOB.fullmatch(job) and "ACCELERATOR" in os.environ:
        return f"https://huggingface.co/jobs/{who}/{job}"
    return None
