"""The page and the plots of a study, from a study.json made up here."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mopeq_hub.printing import console
from mopeq_hub.report import study

HOSTILE = "evil](https://example.org)<script>"


def row(method: str, kl: float, **others: Any) -> dict[str, Any]:
    kind = {"signal": None, "allocator": "uniform", "scope": None, "budget": None, "tries": 1}
    figures = {
        "experts_bytes": 900_000,
        "experts_bpw": 3.3,
        "kl": kl,
        "of_uniform": 0.5,
        "kl_std": None,
        "kl_p99": 3 * kl,
    }
    whole = {"top1_agreement": 0.998, "perplexity_ratio": 1.01, "accuracy": None, "layers": None}
    return {"method": method, **kind, **figures, **whole, **others}


def a_document(**others: Any) -> dict[str, Any]:
    """Two signals on two layers of three experts, the first layer of which has no routed experts."""
    within = {"allocator": "knapsack", "scope": "model", "budget": "3.0bpw"}
    layers = {"1": [0.1, 0.2, 0.3], "2": [0.3, 0.2, 0.6]}
    return {
        "version": "1.0",
        "source": {"kind": "folder", "name": HOSTILE, "commit": "0123456789abcdef"},
        "model": {"layers": 3, "experts": 6},
        "questions": {"name": "few.jsonl", "sha256": "0" * 64, "limit": 0},
        "calibration": {"name": "bundled", "sha256": "1" * 64, "as_measured_on": False},
        "settings": {"bits": [2, 3], "granularity": "expert", "group_size": 64, "rest_bits": 16},
        "budgets": ["3.0bpw"],
        "original": {"tokens": 1234, "loss": 0.1, "accuracy": None},
        "rows": [
            row("uniform 2 bits", 0.02, experts_bytes=700_000),
            row("uniform 3 bits", 0.002),
            row("router, knapsack", 0.01, signal="router", **within),
            row("fisher:own, knapsack", 0.001, signal="fisher:own", **within),
            row("random", 0.005, kl_std=0.006, signal="random", **{**within, "tries": 10}),
        ],
        "signals": [
            {"name": "router", "signal": {"name": "router", "stand_in": "the norm for the change"}, "layers": layers},
            {"name": "fisher:own", "signal": {"name": "fisher"}, "layers": layers},
        ],
        "left_out": [{"name": "frequency:own", "reason": "no memory"}],
        "truth": {"kl": {}, "layers": layers},
        "truth_left_out": None,
        "correlations": [
            {"signal": "router", "widths": {"2": None, "3": -0.25}, "overall": None},
            {"signal": "fisher:own", "widths": {"2": 0.5, "3": 0.75}, "overall": 0.625},
        ],
        **others,
    }


def page(folder: Path, **others: Any) -> str:
    study.write(a_document(**others), folder)
    return (folder / "study.md").read_text("utf-8").replace("&#58;", ":")


def test_methods_are_in_the_order_of_their_kl(tmp_path: Path) -> None:
    within = page(tmp_path).split("### within 3.0bpw")[1].split("###")[0]
    names = [line.split(" | ")[0] for line in within.splitlines() if line.startswith("| ")][2:]
    assert names == ["| fisher:own, knapsack", "| random", "| router, knapsack"]
    assert "| random | 3.30 | 900 kB | 0.005 ± 0.006 | 0.50 | 99.8% | 1.0100 |" in within


def test_what_could_not_be_told_is_a_dash_and_what_was_not_measured_has_its_reason(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "| router | – | -0.25 | – |" in text
    assert "- `frequency:own`: no memory" in text
    assert "`router` takes the norm for the change." in text


def test_benchmarks_are_a_table_with_the_original_first_and_what_was_not_run_beside_it(tmp_path: Path) -> None:
    scores = [{"MME": {"score": 1500.25}}, {"MME": {"score": 1200}}, {"MME": {"score": 1490.5}}, None, None, None]
    asked = {"suite": "lmms-eval", "version": "0.7.3", "limit": 20, "samples": {"MME": {"samples": 20, "of": 2374}}}
    not_run = {"TextVQA": "it failed (KeyError)"}
    found = page(tmp_path, benchmarks={**asked, "not_run": not_run, "original": scores[0], "rows": scores[1:]})
    section = found.split("## Benchmarks")[1].split("##")[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == [
        "| method | bits per weight | MME `score`, 20 of 2374 |",
        "| --- | ---: | ---: |",
        "| original | – | 1,500 |",
        "| uniform 2 bits | 3.30 | 1,200 |",
        "| uniform 3 bits | 3.30 | 1,490 |",
    ]
    assert "- TextVQA: not run, it failed (KeyError)" in section


def test_a_page_without_ground_truth_says_why_and_shows_no_plot_of_it(tmp_path: Path) -> None:
    text = page(tmp_path, truth=None, correlations=[], truth_left_out="it takes 5 hours")
    assert "was not measured: it takes 5 hours." in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"kl.png", "sensitivity.png"}
    assert "correlation.png" not in text


def test_a_study_without_any_signal_still_has_a_page(tmp_path: Path) -> None:
    uniform = a_document()["rows"][:2]
    text = page(tmp_path, signals=[], rows=uniform, budgets=[], truth=None, correlations=[], truth_left_out="x")
    assert "uniform 3 bits" in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"kl.png"}


def test_calibrating_on_what_is_measured_is_said(tmp_path: Path) -> None:
    flattered = {"name": "few.jsonl", "sha256": "0" * 64, "as_measured_on": True}
    assert "are those that were measured on" in page(tmp_path, calibration=flattered)
    assert "are those that were measured on" not in page(tmp_path)


def test_a_name_stays_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(tmp_path)
    assert "<script>" not in text.replace(f"`{HOSTILE}`", "")
    console().print(study.table(a_document()))
    assert HOSTILE in capsys.readouterr().out


def test_plots_are_as_wide_as_a_card_and_the_same_each_time(tmp_path: Path) -> None:
    page(tmp_path / "one")
    page(tmp_path / "other")
    for name in ("kl.png", "correlation.png", "sensitivity.png"):
        assert (tmp_path / "one" / "plots" / name).read_bytes() == (tmp_path / "other" / "plots" / name).read_bytes()
        with Image.open(tmp_path / "one" / "plots" / name) as picture:
            assert picture.width == 1600
