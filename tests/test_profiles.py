"""Profiles are kept for the same weights and settings, and believed for those only."""

from dataclasses import replace
from pathlib import Path

import pytest

from mopeq_hub import MopeqError, Recipe
from mopeq_hub.model import open_model
from mopeq_hub.profiles import cache_of, checked
from mopeq_hub.progress import Quiet
from mopeq_hub.sensitivity import COSTS, SETTINGS
from mopeq_hub.sensitivity.run import measure

DISTORTION, ROUTER = Recipe(signal="distortion"), Recipe(signal="router")


@pytest.mark.parametrize(
    ("recipe", "other"),
    [
        (Recipe(), Recipe(estimator="hutchinson")),
        (Recipe(estimator="hutchinson"), Recipe(estimator="hutchinson", seed=1)),
        (DISTORTION, replace(DISTORTION, group_size=32)),
        (DISTORTION, replace(DISTORTION, symmetric=False)),
        (DISTORTION, replace(DISTORTION, bits=(2, 4))),
        (DISTORTION, replace(DISTORTION, seed=1)),
        (ROUTER, replace(ROUTER, initial="someone/model@" + "0" * 40)),
    ],
)
def test_what_gives_other_numbers_is_kept_apart(recipe: Recipe, other: Recipe, shapes: Path) -> None:
    model = open_model(str(shapes))
    assert cache_of(model, recipe) != cache_of(model, other)


@pytest.mark.parametrize("other", [{"rest_bits": 8}, {"scope": "layer"}, {"allocator": "knapsack", "budget": "3.0bpw"}])
@pytest.mark.parametrize("recipe", [Recipe(), DISTORTION, ROUTER])
def test_what_gives_the_same_numbers_is_kept_once(recipe: Recipe, other: dict[str, object], shapes: Path) -> None:
    model = open_model(str(shapes))
    assert cache_of(model, recipe) == cache_of(model, replace(recipe, **other))  # type: ignore[arg-type]


def test_the_width_that_is_asked_for_changes_no_sensitivity(shapes: Path) -> None:
    model = open_model(str(shapes))
    assert cache_of(model, Recipe((2, 4))) == cache_of(model, Recipe((3,)))


def test_a_profile_is_believed_for_its_own_settings_only(shapes: Path, tmp_path: Path) -> None:
    model = open_model(str(shapes))
    profile = measure(model, DISTORTION, tmp_path / "notes", Quiet())
    assert checked(profile, model, DISTORTION) is profile
    assert checked(profile, model, replace(DISTORTION, bits=(2, 3))) is profile
    for other in (replace(DISTORTION, group_size=32), ROUTER, Recipe()):
        with pytest.raises(MopeqError, match="by another signal"):
            checked(profile, model, other)
    with pytest.raises(MopeqError, match="no cost of 8 bits"):
        checked(profile, model, replace(DISTORTION, bits=(2, 3, 8)))


def test_every_signal_names_itself_in_its_settings() -> None:
    for name, settings in SETTINGS.items():
        assert settings(Recipe(signal=name))["name"] == name
    assert set(SETTINGS) >= COSTS
