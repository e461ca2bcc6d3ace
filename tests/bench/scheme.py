"""Our bit maps beside those of auto-round's AutoScheme, at the bytes of its maps, on a model of text alone.

AutoScheme takes no vision-language model's experts apart and gives all experts of a decoder layer one width. So it is
given the bundled model's language model, and both are measured on questions without a picture, on which the bundled
model computes the same. Its maps are tried as ours are (`mopeq_hub.fidelity.trials`): one quantizer for all.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

from rich.console import RenderableType

from mopeq_hub import Recipe, profiles
from mopeq_hub.allocation import allocate
from mopeq_hub.bitmap import BitMap, packed_bytes
from mopeq_hub.budget import room_for
from mopeq_hub.fidelity.trials import Widths, try_maps, widths_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.quantization.calibrated import calibrated
from mopeq_hub.questions import read_questions
from mopeq_hub.report import number, percent
from mopeq_hub.sensitivity import Profile
from tests.bench.questions import write_questions
from tests.bench.tables import SHAPES, Settings, table
from tests.bench.watch import Watched, watch

QUESTIONS = 1000
BUDGETS = (2.54, 3.05, 3.56)
"""Bits a weight of the experts. What whole layers come to, of which it has four, just fits these."""
INPUTS = {"own inputs": False, "calibration": True}
_COLUMNS = ("bit map", "scored in, s", "expert bpw", "KL, nats", "of AutoScheme's", "KL, 99th percentile", "top-1")
_NO_VALUE = ""


@dataclass(frozen=True)
class Tried:
    """A map by its name; seconds until its scores were there, None where none were needed or they were there before."""

    name: str
    widths: Widths
    seconds: float | None = None


def scheme(settings: Settings) -> Iterator[RenderableType]:
    with settings.scratch() as scratch, patch.dict(os.environ, OMP_NUM_THREADS=str(settings.threads)):
        calibration = _without_pictures(scratch)
        held_out = write_questions(scratch / "held-out", 100 if settings.small else QUESTIONS, pictures=False)
        model = open_model(str(SHAPES))
        budgets = BUDGETS[:1] if settings.small else BUDGETS
        theirs = _auto_schemes(model, scratch, calibration, budgets, settings)
        if isinstance(theirs, str):
            yield theirs
            return
        tried = [[their, *ours] for their, ours in zip(theirs, _ours(model, theirs, calibration), strict=True)]
        yield table(
            f"Bit maps of the experts of the bundled model's language model, {len(held_out.read_text().splitlines())} "
            "questions without a picture that no method saw",
            _COLUMNS,
            _rows(model, tried, held_out),
            "Ours at the bytes of AutoScheme's map, which gives all experts of a layer one width; attention stays at "
            "16 bits. Scores serve all budgets; their time is of the whole process. Calibration is the same "
            f"{len(calibration.read_text().splitlines())} questions for both, own inputs have pictures too. Our "
            "search quantizes every map.",
        )


def _rows(model: Model, tried: list[list[Tried]], held_out: Path) -> Iterator[tuple[str, ...]]:
    """All maps in one process, budget by budget."""
    maps = [each.widths for group in tried for each in group]
    figures = iter(try_maps(model, maps, _recipe(), read_questions(held_out, limit=0), Quiet()))
    weights = 8 / sum(matrix.size for matrix in model.layout.routed)
    for group in tried:
        first = 0.0
        for each in group:
            measured = next(figures)
            first = first or measured["kl_mean"]
            yield (
                each.name,
                _NO_VALUE if each.seconds is None else f"{each.seconds:.0f}",
                f"{_bytes(model, each.widths) * weights:.3f}",
                number(measured["kl_mean"]),
                f"{measured['kl_mean'] / first:.2f}",
                number(measured["kl_p99"]),
                percent(measured["top1_agreement"]),
            )


def _auto_schemes(
    model: Model, scratch: Path, calibration: Path, budgets: tuple[float, ...], settings: Settings
) -> list[Tried] | str:
    """AutoScheme's map for each budget, or in words why there is none."""
    text, found = scratch / "text", scratch / "found.json"
    environment = {**settings.environment(scratch / "home"), "AR_AUTO_SCHEME_CACHE": str(scratch / "scores")}

    def run(*arguments: str) -> Watched:
        program = [sys.executable, "-m", "tests.bench.programs", *arguments]
        return watch(program, environment, [], scratch, settings.limit)

    made = run("text", str(SHAPES), str(text))
    if made.outcome != "done":
        return f"No model of text alone to compare AutoScheme on: {made.outcome}"
    maps: list[Tried] = []
    for bpw in budgets:
        ran = run("scheme", str(text), str(found), str(calibration), str(bpw))
        if ran.outcome != "done":
            return f"AutoScheme, {bpw} bpw: {ran.outcome}"
        widths = {
            name.replace("model.", "model.language_model.", 1): bits
            for name, bits in json.loads(found.read_text("utf-8")).items()
        }
        if set(widths) != {matrix.name for matrix in model.layout.routed}:
            return "AutoScheme names other linear layers than the experts', so its map cannot be tried"
        maps.append(Tried(f"{bpw} bpw: AutoScheme", widths, None if maps else ran.seconds))
    return maps


def _ours(model: Model, theirs: list[Tried], calibration: Path) -> Iterator[list[Tried]]:
    """Our maps at the bytes of each of theirs."""
    profiled = {name: _profile(model, calibration if asked else None) for name, asked in INPUTS.items()}
    for place, their in enumerate(theirs):
        capacity = _bytes(model, their.widths)
        maps = []
        for name, (recipe, profile, seconds) in profiled.items():
            for granularity in ("layer", "expert", "projection"):
                made = replace(recipe, granularity=granularity)
                room = room_for(model, made)
                assert room is not None
                bitmap = allocate(profile, made, replace(room, capacity=capacity))
                taken = seconds if place == 0 and granularity == "layer" else None
                maps.append(Tried(f"fisher, {name}, by {granularity}", widths_of(model, bitmap, made), taken))
        uniform = [
            Tried(f"uniform {bits} bits", widths_of(model, BitMap.uniform(model.layout, bits), _recipe()))
            for bits in _recipe().bits
        ]
        yield [*maps, [each for each in uniform if _bytes(model, each.widths) <= capacity][-1]]


def _profile(model: Model, calibration: Path | None) -> tuple[Recipe, Profile, float]:
    """The profile by `fisher` on its own inputs or on these questions, and the seconds that it took."""
    recipe = calibrated(_recipe(), calibration) if calibration else _recipe()
    started = time.perf_counter()
    profile = profiles.run(model, recipe, calibration, Quiet())
    return recipe, profile, time.perf_counter() - started


def _recipe() -> Recipe:
    """Of all maps; that the budget is what theirs takes is said where they are made."""
    return Recipe(signal="fisher", allocator="knapsack", budget="4bpw", rest_bits=16)


def _bytes(model: Model, widths: Widths) -> int:
    """What the routed experts take, packed."""
    return sum(packed_bytes(each.shape, widths[each.name], _recipe().group_size) for each in model.layout.routed)


def _without_pictures(scratch: Path) -> Path:
    """The calibration questions without a picture, in a file."""
    entries = map(json.loads, (SHAPES / "calibration.jsonl").read_text("utf-8").splitlines())
    written = scratch / "calibration.jsonl"
    written.write_text("\n".join(json.dumps(entry) for entry in entries if entry["image"] is None), "utf-8")
    return written
