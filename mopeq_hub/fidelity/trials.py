"""Many bit maps of one model measured against its original, without quantizing or loading any of them."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.bitmap import BitMap, width_of
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Matrix
from mopeq_hub.model import Model
from mopeq_hub.processes import KILLED, run_module
from mopeq_hub.progress import Progress
from mopeq_hub.questions import Questions
from mopeq_hub.recipe import Recipe
from mopeq_hub.records import entries
from mopeq_hub.sensitivity.by_running import memory_needed

Widths = dict[str, int]
"""Bits by the name of a matrix; one that is not named stays at 16."""


def fits(model: Model, recipe: Recipe) -> bool:
    """Whether this machine's memory holds the original in float32 and every width of its experts packed."""
    return memory_needed(model, recipe.bits) <= workplace.free_memory()


def widths_of(model: Model, bitmap: BitMap, recipe: Recipe) -> Widths:
    """The bits of every matrix that the recipe quantizes with this map."""
    widths = {matrix.name: width_of(matrix, bitmap, recipe) for matrix in model.layout.matrices}
    return {name: bits for name, bits in widths.items() if bits != 16}


def alone(matrices: Sequence[Matrix], bits: int) -> Widths:
    """Only these matrices at so many bits, everything else as it is."""
    return {matrix.name: bits for matrix in matrices}


def try_maps(
    model: Model,
    maps: Sequence[Widths],
    recipe: Recipe,
    questions: Questions,
    progress: Progress,
    *,
    accuracy: bool = False,
    notes: Path | None = None,
) -> list[dict[str, Any]]:
    """The figures of `mopeq_hub.fidelity.metrics.Comparison` of each map, in order, and the `seconds` they took.

    Group size, symmetry and the search for scales are the recipe's; a calibrated quantizer is stood for by the search.
    accuracy: let each also answer the questions, which adds the share that is right. notes: a file that keeps what each
    map gave, so that no later call with it tries the same once more.
    Raises MopeqError where the model cannot be run.
    """
    if notes is None:
        with tempfile.TemporaryDirectory() as scratch:
            kept = Path(scratch) / "trials.jsonl"
            return try_maps(model, maps, recipe, questions, progress, accuracy=accuracy, notes=kept)
    keys = [_key(model, widths, recipe, questions) for widths in maps]
    known = _noted(notes, accuracy)
    left = {key: widths for key, widths in zip(keys, maps, strict=True) if key not in known}
    if left:
        _try(model, left, recipe, questions, progress, accuracy, notes)
        known = _noted(notes, accuracy)
    return [known[key] for key in keys]


def untried(model: Model, maps: Sequence[Widths], recipe: Recipe, questions: Questions, notes: Path) -> int:
    """How many of the maps `notes` does not know."""
    known = _noted(notes, accuracy=False)
    return len({_key(model, widths, recipe, questions) for widths in maps} - known.keys())


def _try(
    model: Model,
    maps: dict[str, Widths],
    recipe: Recipe,
    questions: Questions,
    progress: Progress,
    accuracy: bool,
    notes: Path,
) -> None:
    """Let the process try these maps and note what each gave, under its key."""
    asked = {"questions": questions.path, "limit": questions.limit, "accuracy": accuracy}
    with job_of(model, maps, recipe, notes) as job, progress.stage("try", len(maps), "maps") as advance:
        run_module("mopeq_hub.fidelity.trial_worker", {**job, **asked}, advance, _failed)


@contextmanager
def job_of(model: Model, maps: dict[str, Widths], recipe: Recipe, notes: Path) -> Iterator[dict[str, Any]]:
    """What every process is told that tries these maps on the original in memory; they lie in a file until the end."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "maps.json"
        written.write_text(json.dumps(maps), "utf-8")
        yield {
            "folder": model.local_folder(),
            "auto_class": model.layout.auto_class,
            "trusted": model.trusted,
            "maps": written,
            "notes": notes,
            **settings_of(recipe),
        }


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a process that rounds weights in memory is told of the recipe."""
    return {"group_size": recipe.group_size, "symmetric": recipe.symmetric, "search": recipe.quantizer != "rtn"}


def _key(model: Model, widths: Widths, recipe: Recipe, questions: Questions) -> str:
    """A digest of all that decides what a map gives."""
    asked = [questions.digest, questions.limit]
    whole = json.dumps([model.source.commit, asked, settings_of(recipe), widths], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _noted(notes: Path, accuracy: bool) -> dict[str, dict[str, Any]]:
    """Figures by key, those with an accuracy alone where one is wanted."""
    found = [entry for entry in entries(notes) if isinstance(entry, dict) and "key" in entry and "kl_mean" in entry]
    return {entry["key"]: entry for entry in found if not accuracy or "accuracy" in entry}


def _failed(status: int, words: str) -> MopeqError:
    hint = "use a machine with more memory, or an allocator that measures nothing, such as --allocator knapsack"
    if status == KILLED:
        return MopeqError("the process that tried bit maps was ended, most likely for want of memory", hint)
    return MopeqError(f"bit maps could not be tried on the model: {words}", hint)
