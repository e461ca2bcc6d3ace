"""A recipe is validated once, and its digest names it."""

import pytest

from mopeq_hub import Recipe
from mopeq_hub.errors import UsageError


def test_widths_are_sorted_and_counted_once() -> None:
    assert Recipe(bits=(4, 2, 3, 2)) == Recipe()


def test_the_digest_depends_on_every_choice() -> None:
    others = [
        Recipe(bits=(4,)),
        Recipe(estimator="hutchinson"),
        Recipe(estimator="hutchinson", probes=8),
        Recipe(scope="layer"),
        Recipe(quantizer="rtn"),
        Recipe(quantizer="gptq"),
        Recipe(quantizer="gptq", calibration="0" * 64),
        Recipe(quantizer="signround"),
        Recipe(quantizer="signround", iterations=5),
        Recipe(quantizer="signround", calibration="0" * 64),
        Recipe(group_size=128),
        Recipe(symmetric=False),
        Recipe(rest_bits=16),
        Recipe(shard_size=1000),
        Recipe(seed=1),
    ]
    digests = {recipe.digest for recipe in [Recipe(), *others]}
    assert len(digests) == len(others) + 1
    assert Recipe().digest == Recipe(bits=(3, 2, 4)).digest


def test_choices_that_the_quantizer_has_no_use_for_change_nothing() -> None:
    assert Recipe(iterations=5, calibration="0" * 64) == Recipe()
    assert Recipe(quantizer="gptq", iterations=5) == Recipe(quantizer="gptq")
    assert "iterations" not in Recipe().to_dict()
    assert "calibration" not in Recipe().to_dict()


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(bits=(2, 4), scope="layer", symmetric=False)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    tuned = Recipe(quantizer="signround", iterations=7, calibration="0" * 64)
    assert Recipe.from_dict(tuned.to_dict()) == tuned
    assert Recipe.from_dict({}) == Recipe()


@pytest.mark.parametrize(
    "choices",
    [
        {"bits": ()},
        {"bits": (1,)},
        {"bits": ("x",)},
        {"group_size": 100},
        {"rest_bits": 5},
        {"probes": 0},
        {"wat": 1},
        {"quantizer": "signround", "iterations": 0},
        {"quantizer": "gptq", "calibration": "me.jsonl"},
    ],
)
def test_what_does_not_exist_is_refused(choices: dict) -> None:
    with pytest.raises(UsageError):
        Recipe.from_dict(choices)


def test_the_layout_follows_the_grid() -> None:
    assert Recipe().packing_format == "auto_round:auto_gptq"
    assert Recipe(symmetric=False).packing_format == "auto_round"
