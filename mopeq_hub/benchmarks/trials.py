"""Benchmarks of many bit maps of one model, without quantizing or loading any of them: for a study."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mopeq_hub.benchmarks import SUITE, Benchmarks, version
from mopeq_hub.benchmarks.run import ABSENT, UNEXPLAINED, ended
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.trials import Widths, job_of, settings_of
from mopeq_hub.model import Model
from mopeq_hub.processes import run_module
from mopeq_hub.progress import Progress
from mopeq_hub.recipe import Recipe
from mopeq_hub.records import entries, sha256_of


def answer(
    model: Model, maps: Sequence[Widths | None], recipe: Recipe, asked: Benchmarks, progress: Progress, notes: Path
) -> dict[str, Any]:
    """`benchmarks` of study.json: what the original answers, and the model with each of these maps, None where it is
    not asked.

    notes: a file that keeps what each gave, so that none is asked the same once more. Nothing here fails a study: a
    benchmark that did not give a number for every map has a reason in their place.
    """
    keys = [None if widths is None else _key(model, widths, recipe, asked) for widths in ({}, *maps)]
    wanted = {key: widths or {} for key, widths in zip(keys, ({}, *maps), strict=True) if key}
    reasons = _asked(model, wanted, recipe, asked, progress, notes)
    known = _noted(notes)
    run = {name: task for name, task in asked.tasks.items() if all(task in known.get(key, {}) for key in wanted)}
    original, *rows = [
        None if key is None else {name: known[key][task]["metrics"] for name, task in run.items()} for key in keys
    ]
    of_original = known.get(next(iter(wanted)), {})
    return {
        "suite": SUITE,
        "version": version(),
        "limit": asked.limit,
        "samples": {name: {key: of_original[task][key] for key in ("samples", "of")} for name, task in run.items()},
        "not_run": {name: reasons.get(task, UNEXPLAINED) for name, task in asked.tasks.items() if name not in run},
        "original": original,
        "rows": rows,
    }


def _asked(
    model: Model, maps: dict[str, Widths], recipe: Recipe, asked: Benchmarks, progress: Progress, notes: Path
) -> dict[str, str]:
    """Let a process answer with those of these maps that are not noted; by task the reason why it gave nothing."""
    if version() is None:
        progress.say(f"benchmarks are not run: {ABSENT}; pip install 'mopeq-hub[eval]'")
        return dict.fromkeys(asked.tasks.values(), ABSENT)
    known, tasks = _noted(notes), set(asked.tasks.values())
    left = {key: widths for key, widths in maps.items() if not tasks <= known.get(key, {}).keys()}
    if not left:
        return {}
    try:
        failed = _run(model, left, recipe, asked, progress, notes)
    except MopeqError as error:
        progress.say(f"benchmarks: {error}")
        return dict.fromkeys(tasks, error.what)
    for task, (_, words) in failed.items():
        progress.say(f"the benchmark {task} is not run: {words}")
    return {task: reason for task, (reason, _) in failed.items()}


def _run(
    model: Model, maps: dict[str, Widths], recipe: Recipe, asked: Benchmarks, progress: Progress, notes: Path
) -> dict[str, list[str]]:
    """The process, to its end: by task that failed a reason, and the same in more words."""
    questions = {"tasks": list(asked.tasks.values()), "own": asked.folder, "limit": asked.limit}
    with job_of(model, maps, recipe, notes) as job, progress.stage("benchmarks", len(maps), "maps") as advance:
        whole = {**job, **questions}
        return dict(run_module("mopeq_hub.benchmarks.trial_worker", whole, advance, ended, online=True)["failed"])


def _key(model: Model, widths: Widths, recipe: Recipe, asked: Benchmarks) -> str:
    """A digest of all that decides what a map gives; of a folder of the user's, the task files, not their data."""
    own = sorted(asked.folder.iterdir()) if asked.folder else []
    files = {path.name: sha256_of(path) for path in own if path.suffix in (".yaml", ".py")}
    whole = [model.source.commit, asked.limit, files, SUITE, version(), settings_of(recipe), widths]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]


def _noted(notes: Path) -> dict[str, dict[str, Any]]:
    """By key, what each task gave."""
    known: dict[str, dict[str, Any]] = {}
    for entry in entries(notes):
        if isinstance(entry, dict) and {"key", "benchmarks"} <= entry.keys():
            known.setdefault(entry["key"], {}).update(entry["benchmarks"])
    return known
