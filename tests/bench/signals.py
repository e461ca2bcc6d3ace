"""Every signal and allocator on two trained models, by `study`: KL of the experts' quantization at equal bytes."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from mopeq_hub.study import BUDGETS, study
from tests.bench.tables import SHAPES, Settings, table

MODELS = ("shapes-moe-vl", "shapes-deepseek-vl")
UNIFORM = "3.297bpw"
"""What uniform 3 bits take."""
_SOME_TOKENS = 1000


def signals(settings: Settings) -> Iterator[Table]:
    for name in MODELS:
        found = study(
            str(SHAPES.parent / name),
            budgets=(*BUDGETS, UNIFORM),
            questions=SHAPES / "eval.jsonl",
            calibration=SHAPES / "calibration.jsonl",
            fidelity_tokens=_SOME_TOKENS if settings.small else 0,
            truth=not settings.small,
            out=settings.folder / f"study-{name}",
        )
        yield table(f"{name}: KL, 0.001 nats", ("bit map", *found["budgets"]), _rows(found))


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a method, its budgets side by side; methods that keep to no budget with what they take."""
    methods: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        shown = f"{1000 * row['kl']:.3f}"
        budget = row["budget"]
        methods.setdefault(row["method"], {})[budget] = shown if budget else f"{shown} ({row['experts_bpw']:.2f} bpw)"
    for method, by_budget in methods.items():
        if "" in by_budget:
            yield f"{method}: {by_budget['']}", *("" for _ in found["budgets"])
        else:
            yield method, *(by_budget.get(budget, "") for budget in found["budgets"])
