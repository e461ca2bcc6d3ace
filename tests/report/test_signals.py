"""What a card and a plan say of the signal, and of how well it tells experts apart."""

from pathlib import Path
from typing import Any

import pytest

from mopeq_hub.report.card import write_card
from mopeq_hub.report.summary import spread_line
from tests.report.documents import check, manifest

ALIKE = {"within": 0.0475, "between": 0.0344, "all": 0.0589, "silhouette": 0.54}
APART = {"within": 0.824, "between": 0.186, "all": 0.914, "silhouette": 0.88}


def card(folder: Path, **changes: Any) -> str:
    made = manifest(**changes)
    check(made, "mopeq.schema.json")
    write_card(folder, made, None, None, None, None)
    return (folder / "README.md").read_text("utf-8")


def test_a_card_says_when_experts_hardly_differ(tmp_path: Path) -> None:
    text = card(tmp_path, spread=ALIKE)
    assert (
        "**Spread.** The experts' sensitivities hardly differ: they vary by 4.8% of their mean within a layer" in text
    )
    assert "Clusters would split noise (their silhouette is 0.54; one lump has 0.5 to 0.65)" in text


def test_a_card_says_how_wide_they_spread(tmp_path: Path) -> None:
    text = card(tmp_path, spread=APART)
    assert "vary by 82.4% of their mean within a layer and by 18.6% between layers, in groups that stand apart" in text
    assert "hardly" not in text


def test_a_card_of_before_says_nothing_of_it(tmp_path: Path) -> None:
    assert "**Spread.**" not in card(tmp_path)


def test_a_plan_says_the_same() -> None:
    assert "hardly differ" in spread_line(manifest(spread=ALIKE))
    assert "stand apart" in spread_line(manifest(spread=APART))


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        ({"name": "distortion"}, "how far an expert's output moves"),
        ({"name": "router", "stand_in": "the norm"}, "for want of an earlier checkpoint that norm itself stood in"),
        ({"name": "router", "initial": "a/b@" + "0" * 40}, "changed since the checkpoint `a/b@0000"),
    ],
)
def test_a_card_explains_its_signal(signal: dict[str, str], words: str, tmp_path: Path) -> None:
    assert words in card(tmp_path, signal=signal)
