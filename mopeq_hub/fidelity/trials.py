"""Many bit maps of one model measured against its original, without quantizing or loading any of them."""

import json
import math
import tempfile
from collections.abc import Sequence
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
from mopeq_hub.source import companions

_PROCESS_BYTES = 2_000_000_000
"""What torch, transformers and the activations of a batch take beside the weights."""
Widths = dict[str, int]
"""Bits by the name of a matrix; one that is not named stays at 16."""


def fits(model: Model, recipe: Recipe) -> bool:
    """Whether this machine's memory holds the original in float32 and every width of its experts packed."""
    return memory_needed(model, recipe) <= workplace.free_memory()


def memory_needed(model: Model, recipe: Recipe) -> int:
    """Bytes that `try_maps` takes at most."""
    weights = sum(math.prod(info.shape) for info in model.checkpoint.tensors.values())
    experts = sum(math.prod(matrix.shape) for matrices in model.layout.experts.values() for matrix in matrices)
    return _PROCESS_BYTES + 4 * weights + sum(recipe.bits) * experts // 7


def widths_of(model: Model, bitmap: BitMap, recipe: Recipe) -> Widths:
    """The bits of every matrix that the recipe quantizes with this map."""
    widths = {matrix.name: width_of(matrix, bitmap, recipe) for matrix in model.layout.matrices}
    return {name: bits for name, bits in widths.items() if bits != 16}


def alone(matrices: Sequence[Matrix], bits: int) -> Widths:
    """Only these matrices at so many bits, everything else as it is."""
    return {matrix.name: bits for matrix in matrices}


def try_maps(
    model: Model, maps: Sequence[Widths], recipe: Recipe, questions: Questions, progress: Progress
) -> list[dict[str, Any]]:
    """The figures of `mopeq_hub.fidelity.metrics.Comparison` of each map, in order.

    Group size, symmetry and the search for scales are the recipe's; a calibrated quantizer is stood for by the search.
    Raises MopeqError where the model cannot be run.
    """
    for name in [*model.checkpoint.shards, *companions(model.source)]:
        model.source.path(name)
    with tempfile.TemporaryDirectory() as scratch, progress.stage("try", len(maps), "maps") as advance:
        written = Path(scratch) / "maps.json"
        written.write_text(json.dumps(list(maps)), "utf-8")
        job = {
            "folder": model.source.path("config.json").parent,
            "auto_class": model.layout.auto_class,
            "maps": written,
            "questions": questions.path,
            "limit": questions.limit,
            "group_size": recipe.group_size,
            "symmetric": recipe.symmetric,
            "search": recipe.quantizer != "rtn",
        }
        return list(run_module("mopeq_hub.fidelity.trial_worker", job, advance, _failed)["figures"])


def _failed(status: int, words: str) -> MopeqError:
    hint = "use a machine with more memory, or an allocator that measures nothing, such as --allocator knapsack"
    if status == KILLED:
        return MopeqError("the process that tried bit maps was ended, most likely for want of memory", hint)
    return MopeqError(f"bit maps could not be tried on the model: {words}", hint)
