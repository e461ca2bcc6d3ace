"""What came of a catalog's entries, as people read it: lines on a terminal, a table on GitHub's pages.

An entry here is a dict as `--json` tells it: to, model, state, reasons, commit, error.
"""

from pathlib import Path
from typing import Any

from mopeq_hub.report import Markdown, code, escape, hub_address, link, one_line

_ROOM = 50_000
"""Characters of a table; GitHub takes some more than that in an issue."""


def line(entry: dict[str, Any]) -> str:
    """One entry in one line: its state, where it goes, and why."""
    why = entry["error"] or "; ".join(entry["reasons"])
    return one_line(f"{entry['state']} {entry['to']}" + (f": {why}" if why else ""))


def failure(number: int, entry: dict[str, Any]) -> str:
    """One entry that failed, with its place in the catalog."""
    to = f", to {entry['to']}" if entry["to"] else ""
    return one_line(f"error: entry {number}{to}: {entry['error']}")


def table(entries: list[dict[str, Any]]) -> str:
    """The entries as a Markdown table, in which what strangers named stays text; as many as there is room for."""
    rows = ["| destination | model | state | why |", "| --- | --- | --- | --- |"]
    room = _ROOM
    for position, entry in enumerate(entries):
        row = f"| {' | '.join(_cells(entry))} |"
        room -= len(row)
        if room < 0:
            rows.append(f"| and {len(entries) - position} more | | | |")
            break
        rows.append(row)
    return "\n".join(rows) + "\n"


def _cells(entry: dict[str, Any]) -> list[str]:
    to, model = (_named(entry[key]) for key in ("to", "model"))
    return [to, model, escape(entry["state"]), escape(entry["error"] or "; ".join(entry["reasons"]))]


def _named(name: str) -> Markdown:
    return link(escape(name), page_of(name.partition("@")[0]))


def page_of(name: str, kind: str = "") -> str | None:
    """The page on the Hub of a model or a destination, or with "spaces/" of its Space; None where it is a folder
    here."""
    return None if Path(name).exists() else hub_address(name, kind)


def step_summary(name: str, entries: list[dict[str, Any]]) -> str:
    """The entries for the page of a workflow run."""
    return f"### The catalog {code(name)}\n\n{table(entries)}\n"
