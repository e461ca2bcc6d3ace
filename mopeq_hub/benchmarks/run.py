"""Both models asked the same benchmarks, each in a process of its own: `benchmarks` of fidelity.json.

A number is there only where it was measured; whatever else happens becomes a reason in words, and nothing here fails a
publication.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mopeq_hub import workplace
from mopeq_hub.benchmarks import SUITE, Benchmarks, version
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.cost import stored_dtype
from mopeq_hub.fidelity.measure import Way
from mopeq_hub.manifest import weights_digest
from mopeq_hub.model import Model
from mopeq_hub.processes import KILLED, run_module
from mopeq_hub.progress import Progress
from mopeq_hub.records import entries
from mopeq_hub.version import __version__

ABSENT = f"{SUITE} is not installed"
TOO_LARGE = "memory does not hold the original"
NO_NUMBER = "it gave no number for both models"
UNEXPLAINED = "its process left nothing"
PASSED_THROUGH = "the weights were let go as they were sent"
Found = dict[str, Any]
"""What a task gave: `metrics`, `samples` and `of`; or `not_run`, why it gave nothing."""


@dataclass(frozen=True)
class _Side:
    """One of the two models. known_by: a digest of its weights. loaded: how, as `fidelity.worker.load` is told.
    trusted: whether code that comes with it may be run."""

    role: Literal["original", "published"]
    folder: Path
    known_by: str
    loaded: dict[str, Any]
    trusted: bool


def run(
    model: Model, folder: Path, manifest: dict[str, Any], asked: Benchmarks, way: Way, progress: Progress
) -> dict[str, Any]:
    """`benchmarks` of fidelity.json for the publication in `folder`. way: as the proof measures them on the CPU; on a
    GPU both models compute in the dtype that the original is stored in."""
    installed = version()
    if installed is None:
        progress.say(f"benchmarks are not run: {ABSENT}; pip install 'mopeq-hub[eval]'")
        return not_run(asked, ABSENT)
    device_map = "auto" if _has_gpu() else None
    if way.blocks and device_map is None:
        progress.say(f"benchmarks are not run: {TOO_LARGE}")
        return not_run(asked, TOO_LARGE)
    dtype = stored_dtype(model) if device_map else way.dtype
    loaded = {"auto_class": model.layout.auto_class, "dtype": dtype, "device_map": device_map}
    original = _Side("original", model.local_folder(), model.source.commit, loaded, model.trusted)
    published = _Side("published", folder, weights_digest(manifest), loaded, model.trusted)
    tasks = list(asked.tasks.values())
    first = _asked(original, tasks, asked, progress)
    # What gave nothing once would have to be waited for once more.
    left = [task for task in tasks if "not_run" not in first[task]]
    second = _asked(published, left, asked, progress) if left else {}
    results = [_result(name, task, first[task], second.get(task)) for name, task in asked.tasks.items()]
    return {"suite": SUITE, "version": installed, "limit": asked.limit, "dtype": dtype, "results": results}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def not_run(asked: Benchmarks, reason: str) -> dict[str, Any]:
    """The same where none of them could be run at all."""
    results = [_result(name, task, {"not_run": reason}, None) for name, task in asked.tasks.items()]
    return {"suite": SUITE, "version": version(), "limit": asked.limit, "dtype": None, "results": results}


def _result(name: str, task: str, original: Found, published: Found | None) -> dict[str, Any]:
    """One of `results`: figures of both models side by side, or why there are none."""
    reason = original.get("not_run") or _reason_of(published)
    if reason is None and published is not None and original["samples"] != published["samples"]:
        reason = "the two models were not asked the same number of questions"
    ours = {} if reason else (published or {})["metrics"]
    metrics = [
        {"name": metric, "original": value, "published": ours[metric]}
        for metric, value in original.get("metrics", {}).items()
        if metric in ours
    ]
    if not metrics:
        return {"name": name, "task": task, "samples": None, "of": None, "metrics": [], "not_run": reason or NO_NUMBER}
    counts = {"samples": original["samples"], "of": original["of"]}
    return {"name": name, "task": task, **counts, "metrics": metrics, "not_run": None}


def _reason_of(published: Found | None) -> str | None:
    reason = (published or {}).get("not_run")
    return f"with the publication, {reason}" if reason else None


def _asked(side: _Side, tasks: list[str], asked: Benchmarks, progress: Progress) -> dict[str, Found]:
    """What each task gave, now or, with the same weights, in an earlier run; task files of the user's may have
    changed since."""
    if asked.folder:
        with workplace.scratch() as kept:
            return _measured(side, tasks, asked, kept / "notes.jsonl", progress)
    whole = json.dumps([side.known_by, side.role, side.loaded, asked.limit, version(), __version__], sort_keys=True)
    name = hashlib.sha256(whole.encode()).hexdigest()[:32]
    return _measured(side, tasks, asked, workplace.cache("benchmarks") / f"{name}.jsonl", progress)


def _measured(side: _Side, tasks: list[str], asked: Benchmarks, notes: Path, progress: Progress) -> dict[str, Found]:
    left = [task for task in tasks if task not in dict(_noted(notes))]
    failed: dict[str, list[str]] = {}
    stopped = UNEXPLAINED
    if left:
        job = {
            "role": side.role,
            "folder": side.folder,
            **side.loaded,
            "trusted": side.trusted,
            "tasks": left,
            "own": asked.folder,
            "limit": asked.limit,
            "notes": notes,
        }
        try:
            with progress.stage(f"benchmarks, {side.role}", len(left), "benchmarks") as advance:
                failed = run_module("mopeq_hub.benchmarks.worker", job, advance, ended, online=True)["failed"]
        except MopeqError as error:
            stopped = error.what
            progress.say(f"benchmarks of the {side.role} model: {error}")
    for task, (_, words) in failed.items():
        progress.say(f"the benchmark {task} is not run: {words}")
    known = dict(_noted(notes))
    return {task: known.get(task) or {"not_run": failed[task][0] if task in failed else stopped} for task in tasks}


def _noted(notes: Path) -> Iterator[tuple[str, Found]]:
    for entry in entries(notes):
        if isinstance(entry, dict) and {"task", "metrics", "samples", "of"} <= entry.keys():
            yield entry["task"], entry


def ended(status: int, words: str) -> MopeqError:
    """What is said of a process that came to a bad end."""
    if status == KILLED:
        return MopeqError("its process was ended, most likely for want of memory", "use a machine with more")
    return MopeqError("its process failed", words)
