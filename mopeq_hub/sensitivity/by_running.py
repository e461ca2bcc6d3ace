"""Signals that run the model: their part in the process that asks.

The original answers questions in a process of its own (`mopeq_hub.sensitivity.activity`): its own, so that no data is
needed, or calibration questions and as many recombined from them.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.bitmap import competing
from mopeq_hub.errors import MopeqError
from mopeq_hub.model import Model
from mopeq_hub.processes import KILLED, run_module
from mopeq_hub.progress import Progress
from mopeq_hub.recipe import RUNNING, Recipe
from mopeq_hub.sensitivity.profile import Values, shared_out

VERSION = 1
"""Raised whenever the same settings give other numbers, so that no profile is kept beyond that."""
TOKENS = 32_768
"""Of all questions and answers that the model is run on."""
_PROCESS_BYTES = 2_000_000_000
"""What torch, transformers and the activations of a batch take beside the weights."""
_OTHER = "use a machine with more memory, or a signal that needs weights only, such as --signal distortion"


def memory_needed(model: Model, widths: Iterable[int]) -> int:
    """Bytes of the process that runs a model in float32, with each of these widths of its experts packed beside."""
    # A seventh, not an eighth: scales and zero points come to it.
    packed = sum(widths) * model.layout.routed_size // 7
    return _PROCESS_BYTES + 4 * model.checkpoint.size + packed


def memory_of(model: Model, recipe: Recipe) -> int:
    """Bytes of the process that measures by the recipe's signal, where that runs the model."""
    return memory_needed(model, recipe.bits if recipe.signal == "fisher" else ())


def check_memory(model: Model, recipe: Recipe) -> None:
    """Raises MopeqError where the signal runs the model and this machine's memory does not hold it."""
    if recipe.signal not in RUNNING:
        return
    needed, free = memory_of(model, recipe), workplace.free_memory()
    if needed > free:
        raise MopeqError(
            f"--signal {recipe.signal} runs the model: {free / 1e9:.1f} GB of free memory do not hold "
            f"{model.source.name}, which takes {math.ceil(needed / 1e9)} GB",
            _OTHER,
        )


def measured_by_running(
    model: Model, recipe: Recipe, calibration: Path | None, progress: Progress
) -> tuple[dict[str, Values], list[dict[str, Any]]]:
    """Of each projection by its name what the signal says, and what rows it was measured on.

    Raises MopeqError with the last words of what failed.
    """
    check_memory(model, recipe)
    job = {
        "folder": model.local_folder(),
        "auto_class": model.layout.auto_class,
        "trusted": model.trusted,
        "signal": recipe.signal,
        "inputs": recipe.inputs,
        "calibration": calibration,
        "tokens": TOKENS,
        "widths": recipe.packed_widths,
        "rest": [matrix.name for matrix in competing(model.layout, recipe)],
        "group_size": recipe.group_size,
        "symmetric": recipe.symmetric,
        "seed": recipe.seed,
    }
    with progress.stage("measure", TOKENS, "tokens") as advance:
        result = run_module("mopeq_hub.sensitivity.activity", job, advance, _failed)
    if "costs" in result:
        return {name: tuple(values) for name, values in result["costs"].items()}, result["groups"]
    return _of_projections(model, result["experts"]), result["groups"]


def _of_projections(model: Model, layers: Mapping[str, list[float]]) -> dict[str, Values]:
    """One number an expert, shared out to its projections by their weights."""
    found: dict[str, Values] = {}
    for expert, matrices in model.layout.experts.items():
        shares = shared_out((layers[str(expert.layer)][expert.index],), matrices)
        found |= {matrix.name: values for matrix, values in shares.items()}
    return found


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a profile says of how such a signal was measured."""
    described: dict[str, Any] = {"name": recipe.signal, "inputs": recipe.inputs, "seed": recipe.seed}
    described["version"] = VERSION
    if recipe.inputs == "calibration":
        described["calibration"] = recipe.calibration
    if recipe.signal == "fisher":
        described |= {"group_size": recipe.group_size, "symmetric": recipe.symmetric}
    return described


def _failed(status: int, words: str) -> MopeqError:
    if status == KILLED:
        return MopeqError("the process that ran the model was ended, most likely for want of memory", _OTHER)
    return MopeqError(f"the model could not be run to measure its experts: {words}", _OTHER)
