"""The map that is published where the recipe measures before it chooses (allocator `measured`).

A map that a signal calls best can have a higher KL than plain uniform widths; no signal can be trusted on every model.
So several are made within the budget: of the recipe's signal, by expert, by projection and by layer; of the other
signal that needs no data; and the widest uniform widths that fit. Each is tried on the questions that fidelity is
measured on, beside the paper's map, and the one of least KL that meets the budget is taken.

The signal `best` is the one that was found best of those that a machine can measure: `fisher` where its memory holds
the model, else `distortion`, and then nothing is tried either.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mopeq_hub import profiles
from mopeq_hub.allocation import Room, allocate
from mopeq_hub.bitmap import BitMap, packed_bytes, width_of
from mopeq_hub.budget import room_for
from mopeq_hub.engines import Engine
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.trials import fits, memory_needed, try_maps, widths_of
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.questions import Questions, read_questions
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.given import Given

MEASURED, BEST = "measured", "best"
_DATA_FREE = "distortion"
PAPER = "MoPEQ's map"


@dataclass(frozen=True)
class Candidate:
    """A map by its name in reports, with what it takes of the routed experts' room, in bytes."""

    name: str
    bitmap: BitMap
    nbytes: int


@dataclass(frozen=True)
class Selection:
    """The map that was chosen, and what the manifest says of all that were tried; None where nothing was."""

    bitmap: BitMap
    document: dict[str, Any] | None


def settled(recipe: Recipe, model: Model, questions: Questions, *, whole: bool = True) -> Recipe:
    """The recipe with `best` replaced by what it stands for here, and the questions that maps are tried on named.

    whole: whether the model's files are all here at one time.
    """
    if recipe.signal == BEST:
        runs = whole and fits(model, recipe)
        allocator = MEASURED if runs else "knapsack"
        recipe = replace(recipe, signal="fisher" if runs else _DATA_FREE, allocator=allocator)
    if recipe.allocator != MEASURED:
        return recipe
    named = hashlib.sha256(f"{questions.digest} {questions.limit}".encode()).hexdigest()
    return replace(recipe, questions=named)


def select(
    model: Model,
    recipe: Recipe,
    profile: Profile,
    given: Given,
    progress: Progress,
    engine: Engine,
) -> Selection:
    """The map of the recipe: the allocator's, or of the candidates the best by its KL on the questions.

    Raises MopeqError where the candidates are to be measured and this machine's memory does not hold the model.
    """
    if recipe.allocator != MEASURED:
        return Selection(allocate(profile, recipe, room_for(model, recipe)), None)
    check_memory(model, recipe)
    questions = given.questions or read_questions(None)

    def profile_by(signal: str) -> Profile:
        return profiles.profile_of(model, replace(recipe, signal=signal), progress, engine, given)

    found = candidates(model, recipe, profile, profile_by)
    figures = try_maps(model, [widths_of(model, each.bitmap, recipe) for each in found], recipe, questions, progress)
    room = room_for(model, recipe)
    allowed = [place for place, each in enumerate(found) if room is None or each.nbytes <= room.capacity]
    best = min(allowed, key=lambda place: figures[place]["kl_mean"])
    progress.say(f"of {len(found)} maps tried, {found[best].name} has the least KL: {figures[best]['kl_mean']:.3g}")
    return Selection(found[best].bitmap, _document(model, found, figures, best, questions))


def check_memory(model: Model, recipe: Recipe) -> None:
    """Raises MopeqError where the recipe tries maps and this machine's memory does not hold the model for it."""
    if recipe.allocator == MEASURED and not fits(model, recipe):
        raise MopeqError(
            f"--allocator {MEASURED} runs the model, which takes {memory_needed(model, recipe) / 1e9:.0f} GB of memory",
            "use a machine that has as much free, or --allocator knapsack",
        )


def candidates(model: Model, recipe: Recipe, profile: Profile, profile_by: Callable[[str], Profile]) -> list[Candidate]:
    """What is tried: maps within the budget, and last the paper's, which knows none. `profile_by` measures a signal."""
    room = room_for(model, recipe)
    knapsack = replace(recipe, allocator="knapsack")
    maps = {f"{recipe.signal}, by {recipe.granularity}": allocate(profile, knapsack, room)}
    if recipe.granularity == "expert" and recipe.scope == "model":
        by_projection = replace(knapsack, granularity="projection")
        maps[f"{recipe.signal}, by projection"] = allocate(profile, by_projection, room)
        maps[f"{recipe.signal}, by layer"] = allocate(profile, replace(knapsack, granularity="layer"), room)
    if recipe.signal != _DATA_FREE:
        other = replace(knapsack, signal=_DATA_FREE)
        maps[f"{_DATA_FREE}, by {recipe.granularity}"] = allocate(profile_by(_DATA_FREE), other, room)
    if bits := _widest(model, recipe, room):
        maps[f"uniform {bits} bits"] = BitMap.uniform(model.layout, bits)
    maps[PAPER] = allocate(profile_by("hessian"), recipe.paper())
    return [Candidate(name, bitmap, _bytes(model, bitmap, recipe)) for name, bitmap in maps.items()]


def _widest(model: Model, recipe: Recipe, room: Room | None) -> int | None:
    """The widest of the recipe's widths that every expert can have."""
    fitting = [
        bits
        for bits in recipe.bits
        if room is None or _bytes(model, BitMap.uniform(model.layout, bits), recipe) <= room.capacity
    ]
    return fitting[-1] if fitting else None


def _bytes(model: Model, bitmap: BitMap, recipe: Recipe) -> int:
    """What the routed experts take."""
    return sum(
        packed_bytes(matrix.shape, width_of(matrix, bitmap, recipe), recipe.group_size)
        for matrices in model.layout.experts.values()
        for matrix in matrices
    )


def _document(
    model: Model, found: list[Candidate], figures: list[dict[str, Any]], best: int, questions: Questions
) -> dict[str, Any]:
    weights = sum(x.shape[0] * x.shape[1] for matrices in model.layout.experts.values() for x in matrices)
    return {
        "questions": {"name": questions.name, "sha256": questions.digest, "limit": questions.limit},
        "tried": [
            {
                "name": each.name,
                "experts_bpw": round(8 * each.nbytes / weights, 4),
                "kl": figure["kl_mean"],
                "top1_agreement": figure["top1_agreement"],
                "chosen": place == best,
            }
            for place, (each, figure) in enumerate(zip(found, figures, strict=True))
        ],
    }
