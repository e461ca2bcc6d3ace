"""`study`: which signal to trust on a model, measured on the bundled one with a few questions and two widths."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import MopeqError, Recipe, cli, workplace
from mopeq_hub import study as studying
from mopeq_hub.records import entries
from mopeq_hub.sensitivity import by_running
from mopeq_hub.study import NOTES, SHUFFLES, known_signals, study
from tests import tiny
from tests.conftest import SHAPES, made_once

CHOICES: dict[str, Any] = {
    "signals": ["hessian"],
    "budgets": ["3.0bpw"],
    "recipe": Recipe(bits=(2, 4), rest_bits=16),
    "accuracy": True,
}


@pytest.fixture(scope="module")
def questions(shared: Path) -> Path:
    """Four questions, the reference of the last of which is wrong."""

    def make(folder: Path) -> None:
        shutil.copytree(SHAPES / "images", folder / "images")
        lines = (SHAPES / "eval.jsonl").read_text("utf-8").splitlines()[:4]
        wrong = {**json.loads(lines[-1]), "answer": "nothing of the kind"}
        (folder / "few.jsonl").write_text("\n".join([*lines[:-1], json.dumps(wrong)]) + "\n", "utf-8")

    return made_once(shared / "study-questions", make) / "few.jsonl"


@pytest.fixture(scope="module")
def without_truth(questions: Path, shared: Path) -> Path:
    return made_once(
        shared / "study-without-truth",
        lambda folder: _study(questions=questions, out=folder, truth=False, **CHOICES),
    )


@pytest.fixture(scope="module")
def measured(without_truth: Path, questions: Path, shared: Path) -> Path:
    """The same study, gone on with: now with the ground truth."""

    def make(folder: Path) -> None:
        shutil.copytree(without_truth, folder)
        _study(questions=questions, out=folder, **CHOICES)

    return made_once(shared / "study-measured", make)


def _study(**choices: Any) -> None:
    study(str(SHAPES), **choices)


def document(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "study.json").read_text("utf-8")))


def row_of(found: dict[str, Any], method: str, budget: str | None) -> dict[str, Any]:
    [row] = [row for row in found["rows"] if (row["method"], row["budget"]) == (method, budget)]
    return dict(row)


def noted(folder: Path) -> list[str]:
    return [entry["key"] for entry in entries(folder / NOTES)]


def test_every_method_is_measured_within_each_budget_and_what_knows_none_at_its_own_size(without_truth: Path) -> None:
    found = document(without_truth)
    own = {row["method"] for row in found["rows"] if row["budget"] is None}
    assert own == {
        "uniform 2 bits",
        "uniform 4 bits",
        "hessian, k-means model-wise",
        "hessian, k-means layer-wise",
    }
    within = [row for row in found["rows"] if row["budget"] == "3.0bpw"]
    assert {row["method"] for row in within} == {"uniform 2 bits", "random", "hessian, rank", "hessian, knapsack"}
    assert all(2.28 < row["experts_bpw"] <= 3.0 for row in within)
    assert row_of(found, "uniform 4 bits", None)["kl"] < row_of(found, "uniform 2 bits", None)["kl"]


def test_bit_maps_are_held_against_uniform_widths_of_their_size(without_truth: Path) -> None:
    found = document(without_truth)
    low, high = (row_of(found, f"uniform {bits} bits", None) for bits in (2, 4))
    assert low["of_uniform"] == pytest.approx(1)
    assert high["of_uniform"] == pytest.approx(1)
    row = row_of(found, "hessian, knapsack", "3.0bpw")
    share = (row["experts_bytes"] - low["experts_bytes"]) / (high["experts_bytes"] - low["experts_bytes"])
    assert row["kl"] == pytest.approx(row["of_uniform"] * low["kl"] ** (1 - share) * high["kl"] ** share)


def test_random_is_a_mean_of_several_bit_maps(without_truth: Path) -> None:
    row = row_of(document(without_truth), "random", "3.0bpw")
    assert row["tries"] == SHUFFLES
    assert row["kl_std"] > 0


def test_the_answers_are_marked_where_that_is_asked(without_truth: Path) -> None:
    found = document(without_truth)
    assert found["original"]["accuracy"] == 3 / 4
    assert all(0 <= row["accuracy"] <= 1 for row in found["rows"])


def test_the_ground_truth_is_the_damage_of_each_expert_alone_and_bounds_the_signals(measured: Path) -> None:
    found = document(measured)
    truth = found["truth"]["kl"]
    assert [len(truth["2"][layer]) for layer in "0123"] == [24] * 4
    assert sum(map(sum, truth["4"].values())) < sum(map(sum, truth["2"].values()))
    bound = row_of(found, "ground truth, knapsack", "3.0bpw")
    assert bound["experts_bpw"] <= 3.0
    assert bound["kl"] == min(row["kl"] for row in found["rows"] if row["budget"])
    [correlation] = found["correlations"]
    assert correlation["signal"] == "hessian"
    assert all(-1 <= value <= 1 for value in (correlation["overall"], *correlation["widths"].values()))


def test_a_study_goes_on_from_what_was_measured_before(
    without_truth: Path, measured: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = noted(without_truth), noted(measured)
    assert after[: len(before)] == before
    # Each expert alone at two widths, and the bound.
    assert len(after) == len(set(after)) == len(before) + 2 * 96 + 1
    old = document(measured)

    def fail(*arguments: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("mopeq_hub.fidelity.trials.run_module", fail)
    assert study(str(SHAPES), questions=questions, out=measured, **CHOICES) == old
    assert noted(measured) == after


def test_a_ground_truth_that_takes_too_long_is_left_out_with_its_time(
    without_truth: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(without_truth, tmp_path / "study")
    monkeypatch.setattr(studying, "TRUTH_SECONDS", 0)
    found = study(str(SHAPES), questions=questions, out=tmp_path / "study", **CHOICES)
    assert found["truth"] is None
    assert found["truth_left_out"].startswith("its 192 trials take about ")
    assert "--truth" in (tmp_path / "study" / "study.md").read_text("utf-8")


def test_a_signal_that_cannot_be_measured_is_named_with_its_reason(
    without_truth: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(without_truth, tmp_path / "study")
    monkeypatch.setattr(by_running, "memory_needed", lambda model, widths: 10**15)
    choices = {**CHOICES, "signals": ["hessian", "fisher"], "truth": False}
    found = study(str(SHAPES), questions=questions, out=tmp_path / "study", **choices)
    assert [each["name"] for each in found["left_out"]] == ["fisher:own", "fisher:calibration"]
    assert all("free memory" in each["reason"] for each in found["left_out"])
    assert "runs the model" in (tmp_path / "study" / "study.md").read_text("utf-8")
    assert [each["name"] for each in found["signals"]] == ["hessian"]


def test_the_page_has_a_table_for_each_budget_and_the_plots_are_drawn(without_truth: Path, measured: Path) -> None:
    page = (measured / "study.md").read_text("utf-8")
    assert "### within 3.0bpw" in page
    assert "### at their own size" in page
    first = page.split("### within 3.0bpw")[1].splitlines()[4]
    assert first.startswith("| ground truth, knapsack | ")
    for name in ("kl", "correlation", "sensitivity"):
        assert f"(plots/{name}.png)" in page
        assert (measured / "plots" / f"{name}.png").stat().st_size > 10_000
    assert "correlation.png" not in (without_truth / "study.md").read_text("utf-8")


def test_the_terminal_shows_the_closest_first_and_json_all_of_it(
    measured: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", str(SHAPES), "--signals", "hessian", "--budgets", "3.0bpw", "--bits", "2,4", "--accuracy"]
    where = ["--questions", str(questions), "--out", str(measured)]
    printed = {}
    for form in ("text", "json"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, *where, *(["--json"] if form == "json" else [])])
        printed[form] = capsys.readouterr().out
        assert not ended.value.code
    assert json.loads(printed["json"]) == document(measured)
    lines = printed["text"].splitlines()
    place = next(number for number, line in enumerate(lines) if "within 3.0bpw" in line)
    assert "ground truth, knapsack" in lines[place + 1]


def test_signals_that_run_the_model_are_two_each() -> None:
    assert {"hessian", "fisher:own", "fisher:calibration"} <= set(known_signals())


def refuse_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(workplace, "free_memory", lambda: 1_000_000)
    return {}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (lambda patch: refuse_memory(patch), "shapes-moe-vl takes 3 GB; use a machine with more memory"),
        (lambda patch: {"signals": ["hesian"]}, "no signal 'hesian'; choose from hessian"),
        (lambda patch: {"allocators": ["measured"]}, "no allocator 'measured'; choose from kmeans, rank, knapsack"),
        (lambda patch: {"budgets": ["1bpw"]}, "a budget of 1bpw is too small"),
        (lambda patch: {"accuracy": True}, "the bundled questions have no answers that count"),
        (lambda patch: {"out": SHAPES / "study"}, "lies within the model"),
        (lambda patch: {"recipe": Recipe(quantizer="gptq")}, "without calibrated quantizers"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_measured(
    choices: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(MopeqError, match=expected):
        study(str(SHAPES), **{"out": tmp_path / "study", **choices(monkeypatch)})
    assert not (SHAPES / "study").exists()


def reference(folder: Path) -> None:
    """An untrained DeepSeek-VL2, as its repos are laid out."""
    folder.mkdir()
    tiny.deepseek_vl2(folder)


def test_the_papers_maps_of_a_model_of_its_kind_are_measured_at_their_own_size(
    questions: Path, tmp_path: Path, shared: Path
) -> None:
    model = made_once(shared / "study-deepseek", reference)
    choices: dict[str, Any] = {"signals": ["hessian"], "allocators": ["kmeans"], "budgets": [], "truth": False}
    found = study(str(model), questions=questions, out=tmp_path, recipe=Recipe(bits=(2, 4)), **choices)
    assert found["model"] == {"layers": 3, "experts": 16}
    assert {row["method"] for row in found["rows"]} == {
        "uniform 2 bits",
        "uniform 4 bits",
        "hessian, k-means model-wise",
        "hessian, k-means layer-wise",
    }
    assert all(0 < row["kl"] < 1 for row in found["rows"])
    page = (tmp_path / "study.md").read_text("utf-8")
    assert "## Bit maps" in page
    assert "random" not in page
