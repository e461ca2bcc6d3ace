"""Every signal and allocator on two trained models, by `study`: KL of the experts' quantization at equal bytes.

First on the questions of eval.jsonl, on which the ground truth is measured too; then, what counts, on questions that no
method saw, the ground truth of the first included. There what keeps to a budget goes by expert, and `fisher` by
projection too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from mopeq_hub import Recipe
from mopeq_hub.allocation import allocate
from mopeq_hub.budget import room_for
from mopeq_hub.experts import Expert
from mopeq_hub.fidelity.trials import try_maps, widths_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import read_questions
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.profile import shared_out
from mopeq_hub.study import BUDGETS, NOTES, study
from tests.bench.questions import write_questions
from tests.bench.tables import SHAPES, Settings, table

MODELS = ("shapes-moe-vl", "shapes-deepseek-vl")
UNIFORM = "3.297bpw"
"""What uniform 3 bits take."""
QUESTIONS = 2000
_SOME_TOKENS = 1000


def signals(settings: Settings) -> Iterator[Table]:
    unseen = write_questions(settings.folder / "unseen", 100 if settings.small else QUESTIONS)
    for name in MODELS:
        place, out = str(SHAPES.parent / name), settings.folder / f"study-{name}"
        known = {"questions": SHAPES / "eval.jsonl", "fidelity_tokens": _SOME_TOKENS if settings.small else 0}
        seen = _study(place, truth=True, out=out, **known)
        yield table(f"{name}, questions of eval.jsonl: KL, 0.001 nats", ("bit map", *seen["budgets"]), _rows(seen))
        others: dict[str, Any] = {"questions": unseen, "fidelity_tokens": 0, "truth": False, "out": out / "unseen"}
        found = _study(place, allocators=["kmeans", "knapsack"], **others)
        finer = Recipe(rest_bits=16, granularity="projection")
        by_projection = _study(place, signals=["fisher"], allocators=["knapsack"], recipe=finer, **others)
        rows = [*_rows(found), *_rows(by_projection, "fisher", ", by projection")]
        yield table(
            f"{name}, {len(unseen.read_text('utf-8').splitlines()):,} questions that no method saw: KL, 0.001 nats",
            ("bit map", *found["budgets"]),
            [*rows, _bound(open_model(place), seen, unseen, out / "unseen" / NOTES)],
        )


def _study(place: str, **options: Any) -> dict[str, Any]:
    return study(place, budgets=sorted({*BUDGETS, UNIFORM}), calibration=SHAPES / "calibration.jsonl", **options)


def _rows(found: Mapping[str, Any], only: str = "", suffix: str = "") -> Iterator[tuple[str, ...]]:
    """One row a method, its budgets side by side; methods that keep to no budget with what they take. only: how the
    methods begin that are wanted."""
    methods: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        shown = f"{1000 * row['kl']:.3f}"
        budget = row["budget"] or ""
        methods.setdefault(row["method"], {})[budget] = shown if budget else f"{shown} ({row['experts_bpw']:.2f} bpw)"
    for method, by_budget in methods.items():
        if not method.startswith(only):
            continue
        if "" in by_budget:
            yield f"{method}: {by_budget['']}", *("" for _ in found["budgets"])
        else:
            yield method + suffix, *(by_budget.get(budget, "") for budget in found["budgets"])


def _bound(model: Model, seen: Mapping[str, Any], unseen: Path, notes: Path) -> tuple[str, ...]:
    """What the ground truth of `seen`, given to the knapsack, does on questions that it was not measured on."""
    experts = {}
    bits = seen["settings"]["bits"]
    for expert, matrices in model.layout.experts.items():
        costs = tuple(_cost(seen, expert, width) for width in bits)
        experts[expert] = {str(matrix.projection): values for matrix, values in shared_out(costs, matrices).items()}
    truth = Profile({"name": "ground truth"}, experts, model.source.commit, tuple(bits))
    maps = []
    for budget in seen["budgets"]:
        recipe = Recipe(allocator="knapsack", budget=budget, rest_bits=16)
        maps.append(widths_of(model, allocate(truth, recipe, room_for(model, recipe)), recipe))
    figures = try_maps(model, maps, Recipe(rest_bits=16), read_questions(unseen, limit=0), Quiet(), notes=notes)
    return "ground truth, knapsack", *(f"{1000 * each['kl_mean']:.3f}" for each in figures)


def _cost(seen: Mapping[str, Any], expert: Expert, width: int) -> float:
    return float(seen["truth"]["kl"][str(width)][str(expert.layer)][expert.index])
