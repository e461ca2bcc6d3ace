"""Benchmarks of both models as people read them: a table for the card, a line for a terminal, metadata for the Hub.

All from `benchmarks` of fidelity.json. What was not measured is `not run`, with the reason, and has no number.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import code, one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def results(fidelity: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What each benchmark gave; none where none were asked for."""
    return list(((fidelity or {}).get("benchmarks") or {}).get("results", []))


def limited(fidelity: dict[str, Any] | None) -> int:
    """How many questions of a task were asked at most, where some task has more; else 0."""
    cut = any(each["of"] and each["samples"] < each["of"] for each in results(fidelity))
    return int(fidelity["benchmarks"]["limit"]) if fidelity and cut else 0


def rows(fidelity: dict[str, Any] | None) -> Iterator[tuple[str, ...]]:
    """Cells of the card's table: benchmark, metric, original, publication, questions."""
    for each in results(fidelity):
        if each["not_run"]:
            yield each["name"], f"not run: {each['not_run']}", "", "", ""
        for metric in each["metrics"]:
            values = (figure(metric[side]) for side in ("original", "published"))
            yield each["name"], code(metric["name"]), *values, _questions(each)


def lines(fidelity: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Each benchmark's name, and in words what it gave."""
    for each in results(fidelity):
        if each["not_run"]:
            yield one_line(each["name"]), f"not run: {one_line(each['not_run'])}"
            continue
        found = [
            f"{metric['name']} {figure(metric['published'])}, the original has {figure(metric['original'])}"
            for metric in each["metrics"]
        ]
        yield one_line(each["name"]), one_line(f"{'; '.join(found)} ({_questions(each)} questions)")


def card_results(task: str, fidelity: dict[str, Any]) -> Iterator["EvalResult"]:
    """The publication's numbers for the card's metadata, to six digits. task: the model's, by the Hub's name."""
    from huggingface_hub import EvalResult

    limit = limited(fidelity)
    for each in results(fidelity):
        for metric in each["metrics"]:
            yield EvalResult(
                task_type=task,
                dataset_type=re.sub(r"[^A-Za-z0-9_.-]+", "-", each["task"]),
                dataset_name=one_line(each["name"]),
                dataset_args={"limit": limit} if limit and each["samples"] < each["of"] else None,
                metric_type=re.sub(r"[^A-Za-z0-9_.-]+", "-", metric["name"]),
                metric_name=one_line(f"{metric['name']} (lmms-eval)"),
                metric_value=float(f"{metric['published']:.6g}"),
            )


def figure(value: float) -> str:
    """A benchmark's number with four digits: some are shares, others sums of thousands."""
    return f"{value:,.0f}" if abs(value) >= 9999.5 else f"{value:,.4g}"


def _questions(each: dict[str, Any]) -> str:
    whole = each["samples"] == each["of"]
    return f"{each['samples']:,}" if whole else f"{each['samples']:,} of {each['of']:,}"
