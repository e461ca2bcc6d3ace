"""Bit maps of a study answer benchmarks in the original's memory, through lmms-eval itself."""

from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import Recipe
from mopeq_hub.benchmarks import benchmarks, trials
from mopeq_hub.benchmarks.trials import answer
from mopeq_hub.fidelity.trials import Widths
from mopeq_hub.model import Model, open_model
from mopeq_hub.progress import Quiet
from tests.conftest import ASSETS


@pytest.fixture(scope="module")
def model(shapes: Path) -> Model:
    return open_model(str(shapes))


def answered(model: Model, maps: list[Widths | None], notes: Path, *names: str) -> dict[str, Any]:
    asked = benchmarks(names, limit=16, folder=ASSETS / "shapes-tasks")
    assert asked is not None
    return answer(model, maps, Recipe(quantizer="rtn"), asked, Quiet(), notes)


def test_maps_answer_what_the_original_does_and_worse(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = {matrix.name: 2 for matrix in model.layout.matrices}
    found = answered(model, [coarse, None, {}], tmp_path / "notes.jsonl", "shapes", "nowhere")
    assert found["samples"] == {"shapes": {"samples": 16, "of": 400}}
    assert found["not_run"] == {"nowhere": "there is no such task"}
    original, worse, none, same = (
        each and each["shapes"]["exact_match"] for each in (found["original"], *found["rows"])
    )
    assert none is None
    assert same == original > worse

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(trials, "run_module", fail)
    again = answered(model, [coarse], tmp_path / "notes.jsonl", "shapes")
    assert again["rows"] == found["rows"][:1]


def test_without_lmms_eval_no_map_has_a_number(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "version", lambda: None)
    found = answered(model, [{}], tmp_path / "notes.jsonl", "MME")
    assert found["not_run"] == {"MME": "lmms-eval is not installed"}
    assert (found["original"], found["rows"]) == ({}, [{}])
