"""The map that is published where the recipe measures before it chooses (allocator `measured`).

A map that a signal calls best can have a higher KL than plain uniform widths; no signal can be trusted on every model.
So several are made within the budget: of the recipe's signal, by expert, by projection and by layer; of the other
signal that needs no data; and the widest uniform widths that fit. Each is tried on the questions that fidelity is
measured on, beside the paper's map, and the one of least KL that meets the budget is taken.

The signal `best` is the one that was found best of those that a machine can measure: `fisher` where its memory holds
the model, else `distortion`, and then nothing is tried either. Where `distortion` does not know how a model routes,
`hessian` takes its place.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mopeq_hub import profiles, workplace
from mopeq_hub.allocation import Room, allocate
from mopeq_hub.bitmap import BitMap, bytes_of, competing
from mopeq_hub.budget import room_for
from mopeq_hub.engines import Engine
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.trials import fits, try_maps, widths_of
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.questions import Questions, read_questions
from mopeq_hub.recipe import BEST, MEASURED, Recipe
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.by_running import memory_needed
from mopeq_hub.sensitivity.given import Given
from mopeq_hub.version import __version__

_DATA_FREE, _WEIGHTS_ALONE = "distortion", "hessian"
PAPER = "MoPEQ's map"


@dataclass(frozen=True)
class Candidate:
    """A map by its name in reports, with what it takes of the room, in bytes."""

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

    whole: whether the model's files are all here at one time. Raises MopeqError where the rest is to compete with the
    experts, which only a model that is run can tell.
    """
    runs = recipe.signal == BEST and whole and fits(model, recipe)
    if recipe.signal == BEST and not runs and recipe.rest_bits == "auto":
        needed = memory_needed(model, recipe.bits) / 1e9
        raise MopeqError(
            f"--rest-bits auto runs the whole model, which takes {needed:.0f} GB of memory",
            "use a machine that has as much free, one width for the rest, or --signal hessian",
        )
    return _settled(recipe, questions, "fisher" if runs else _data_free(model))


def settled_anywhere(recipe: Recipe, questions: Questions) -> list[Recipe]:
    """All that `settled` may make of a recipe, on one machine or another."""
    if recipe.signal != BEST or recipe.rest_bits == "auto":
        return [_settled(recipe, questions, "fisher")]
    return [_settled(recipe, questions, signal) for signal in ("fisher", _DATA_FREE, _WEIGHTS_ALONE)]


def _data_free(model: Model) -> str:
    """The best signal of those that do not run this model."""
    return _WEIGHTS_ALONE if model.layout.routing.trouble else _DATA_FREE


def _settled(recipe: Recipe, questions: Questions, best: str) -> Recipe:
    """best: the signal that `best` stands for."""
    if recipe.signal == BEST:
        recipe = replace(recipe, signal=best, allocator=MEASURED if best == "fisher" else "knapsack")
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

    What a map gave is kept for the next run.
    Raises MopeqError where the candidates are to be measured and this machine's memory does not hold the model.
    """
    if recipe.allocator != MEASURED:
        return Selection(allocate(profile, recipe, room_for(model, recipe)), None)
    check_memory(model, recipe)
    questions = given.questions or read_questions(None)
    room, found = _found(model, recipe, profile, given, progress, engine)
    maps = [widths_of(model, each.bitmap, recipe) for each in found]
    figures = try_maps(model, maps, recipe, questions, progress, notes=_notes(model))
    allowed = [place for place, each in enumerate(found) if each.nbytes <= room.capacity]
    best = min(allowed, key=lambda place: figures[place]["kl_mean"])
    progress.say(f"of {len(found)} maps tried, {found[best].name} has the least KL: {figures[best]['kl_mean']:.3g}")
    return Selection(found[best].bitmap, _document(model, recipe, found, figures, best, questions))


def try_together(model: Model, recipes: Sequence[Recipe], given: Given, progress: Progress, engine: Engine) -> None:
    """Try the maps of recipes that differ in their budgets alone, so that the original is loaded once for all of them;
    `select` then finds what each map gave."""
    maps = []
    for recipe in recipes:
        profile = profiles.profile_of(model, recipe, progress, engine, given)
        _, found = _found(model, recipe, profile, given, progress, engine)
        maps += [widths_of(model, each.bitmap, recipe) for each in found]
    questions = given.questions or read_questions(None)
    try_maps(model, maps, recipes[0], questions, progress, notes=_notes(model))


def _found(
    model: Model, recipe: Recipe, profile: Profile, given: Given, progress: Progress, engine: Engine
) -> tuple[Room, list[Candidate]]:
    """The room of a recipe that measures, and the candidates for it."""

    def profile_by(signal: str) -> Profile:
        return profiles.profile_of(model, replace(recipe, signal=signal), progress, engine, given)

    room = room_for(model, recipe)
    assert room is not None, "a recipe that measures has a budget"
    return room, candidates(model, recipe, room, profile, profile_by)


def _notes(model: Model) -> Path:
    """What maps of this model gave, whatever they were tried for."""
    return workplace.cache("trials") / f"{model.source.commit[:16]}-{__version__}.jsonl"


def check_memory(model: Model, recipe: Recipe) -> None:
    """Raises MopeqError where the recipe tries maps and this machine's memory does not hold the model for it."""
    if recipe.allocator == MEASURED and not fits(model, recipe):
        needed = memory_needed(model, recipe.bits) / 1e9
        raise MopeqError(
            f"--allocator {MEASURED} runs the model, which takes {needed:.0f} GB of memory",
            "use a machine that has as much free, or --allocator knapsack",
        )


def candidates(
    model: Model, recipe: Recipe, room: Room, profile: Profile, profile_by: Callable[[str], Profile]
) -> list[Candidate]:
    """What is tried: maps within the room, and last the paper's, which knows none. `profile_by` measures a signal."""
    knapsack = replace(recipe, allocator="knapsack")
    maps = {f"{recipe.signal}, by {recipe.granularity}": allocate(profile, knapsack, room)}
    rest = {matrix.name: _beside(recipe) for matrix in competing(model.layout, recipe)}
    if recipe.granularity == "expert" and recipe.scope == "model":
        by_projection = replace(knapsack, granularity="projection")
        maps[f"{recipe.signal}, by projection"] = allocate(profile, by_projection, room)
        maps[f"{recipe.signal}, by layer"] = allocate(profile, replace(knapsack, granularity="layer"), room)
    if recipe.signal != _DATA_FREE and not rest and not model.layout.routing.trouble:
        other = replace(knapsack, signal=_DATA_FREE)
        maps[f"{_DATA_FREE}, by {recipe.granularity}"] = allocate(profile_by(_DATA_FREE), other, room)
    uniform = {bits: BitMap(BitMap.uniform(model.layout, bits).bits, rest) for bits in recipe.bits}
    fitting = [bits for bits in recipe.bits if _taken(uniform[bits], recipe, room) <= room.capacity]
    if fitting:
        maps[f"uniform {fitting[-1]} bits"] = uniform[fitting[-1]]
    maps[PAPER] = BitMap(allocate(profile_by("hessian"), recipe.paper()).bits, rest)
    return [Candidate(name, bitmap, _taken(bitmap, recipe, room)) for name, bitmap in maps.items()]


def _beside(recipe: Recipe) -> int:
    """What the rest has in maps that say nothing of it."""
    return Recipe.rest_bits if Recipe.rest_bits in recipe.widths else recipe.bits[-1]


def _taken(bitmap: BitMap, recipe: Recipe, room: Room) -> int:
    """Bytes of all that competes."""
    return sum(
        sizes[recipe.widths.index(bitmap.rest[member] if isinstance(member, str) else bitmap.bits[member])]
        for member, sizes in room.sizes.items()
    )


def _document(
    model: Model,
    recipe: Recipe,
    found: list[Candidate],
    figures: list[dict[str, Any]],
    best: int,
    questions: Questions,
) -> dict[str, Any]:
    weights = model.layout.routed_size
    return {
        "questions": {"name": questions.name, "sha256": questions.digest, "limit": questions.limit},
        "tried": [
            {
                "name": each.name,
                "experts_bpw": round(8 * bytes_of(model.layout.routed, each.bitmap, recipe) / weights, 4),
                "kl": figure["kl_mean"],
                "top1_agreement": figure["top1_agreement"],
                "chosen": place == best,
            }
            for place, (each, figure) in enumerate(zip(found, figures, strict=True))
        ],
    }
