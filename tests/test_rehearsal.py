"""A kind of model that nobody proved is tried before its weights are fetched."""

from pathlib import Path

import pytest

from mopeq_hub import rehearsal
from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.model import Model, open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.recipe import Recipe
from mopeq_hub.rehearsal import rehearse
from tests import tiny


class Listener(Quiet):
    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def unproven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(rehearsal, "is_proven", lambda config: False)
    return open_model(str(tiny.mixtral(tmp_path / "model")))


def test_what_would_load_is_told_of_and_passes(unproven: Model) -> None:
    progress = Listener()
    rehearse(unproven, Recipe(group_size=32), progress)
    assert progress.told == [
        "mixtral is none of the kinds that were proven (mopeq-hub families): trying what would load it"
    ]


def test_what_the_loader_would_take_for_another_width_is_refused(
    unproven: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Family, "expression", lambda self, module: f"no{module}")
    with pytest.raises(MopeqError, match="auto-round's loader would not"):
        rehearse(unproven, Recipe(group_size=32), Quiet())


def test_a_proven_kind_is_not_tried(tmp_path: Path) -> None:
    progress = Listener()
    rehearse(open_model(str(tiny.mixtral(tmp_path / "model"))), Recipe(group_size=32), progress)
    assert not progress.told
