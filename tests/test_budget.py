"""A budget: the published files keep within it and use it, and one that cannot be met names those that can."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mopeq_hub import MopeqError, Recipe, pipeline, profiles
from mopeq_hub.allocation import allocate
from mopeq_hub.allocation.items import items_of
from mopeq_hub.budget import room_for
from mopeq_hub.errors import UsageError
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from tests.allocation.test_knapsack import best_total


def quantized_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("allocator", ["knapsack", "rank"])
def test_bits_per_weight_are_those_of_the_experts(allocator: str, shapes: Path) -> None:
    manifest = pipeline.plan(str(shapes), Recipe(allocator=allocator, budget="3.0bpw")).manifest
    assert manifest is not None
    assert 2.95 < manifest["sizes"]["experts_bpw"] <= 3.0
    assert len({bits for layer in manifest["experts"] for bits in layer["bits"]}) > 1


@pytest.mark.parametrize("budget", ["1.6MB", "0.28x"])
def test_bytes_are_those_of_all_files(budget: str, shapes: Path, tmp_path: Path) -> None:
    original = quantized_bytes(shapes)
    allowed = {"1.6MB": 1_600_000, "0.28x": int(0.28 * original)}[budget]
    repo = pipeline.quantize(str(shapes), tmp_path / "out", Recipe(allocator="knapsack", budget=budget))
    # One step of one expert is about 9 kB.
    assert allowed - 10_000 < quantized_bytes(repo.folder) <= allowed


def test_the_rest_competes_with_the_experts_for_all_bytes(shapes: Path, tmp_path: Path) -> None:
    recipe = Recipe(allocator="knapsack", budget="1.75MB", rest_bits="auto")
    repo = pipeline.quantize(str(shapes), tmp_path / "out", recipe)
    # What headers might have needed is kept back.
    assert 1_750_000 - 15_000 < quantized_bytes(repo.folder) <= 1_750_000
    rest = repo.manifest["rest"]
    assert (rest["bits"], rest["unquantized"], len(rest["widths"])) == ("auto", [], 16)
    assert rest["quantized"] == sum(bits != 16 for bits in rest["widths"].values())
    with pytest.raises(MopeqError) as told:
        pipeline.plan(str(shapes), replace(recipe, budget="1.2MB"))
    assert "the smallest is 1.4" in str(told.value.hint)
    assert "on every expert has 4 bits and the rest 16" in str(told.value.hint)


def test_of_all_choices_within_the_room_the_widths_lose_least(shapes: Path) -> None:
    model = open_model(str(shapes))
    recipe = Recipe(allocator="knapsack", budget="1.75MB", rest_bits="auto")
    profile, room = profiles.profile_of(model, recipe, Quiet()), room_for(model, recipe)
    (items,) = items_of(profile, recipe, room)
    assert len(items.members) == 96 + 16
    bitmap = allocate(profile, recipe, room)
    given = [bitmap.rest[item[0]] if isinstance(item[0], str) else bitmap.bits[item[0]] for item in items.members]
    lost = sum(costs[items.widths.index(bits)] for costs, bits in zip(items.costs, given, strict=True))
    never = np.where(np.isfinite(items.costs), items.costs, 1e9)
    assert lost == pytest.approx(best_total(never, *items.room), rel=1e-9)


def test_plan_counts_the_rest_of_uniform_widths_as_they_would_be(shapes: Path) -> None:
    alone = pipeline.plan(str(shapes), Recipe())
    beside = pipeline.plan(str(shapes), Recipe(allocator="knapsack", budget="1.75MB", rest_bits="auto"))
    assert beside.choices[:-1] == alone.choices[:-1]
    assert alone.manifest is not None
    assert beside.manifest is not None
    assert beside.manifest["sizes"]["uniform_4bit_bytes"] == alone.manifest["sizes"]["uniform_4bit_bytes"]


def test_a_profile_of_the_experts_alone_is_not_enough_for_the_rest(shapes: Path) -> None:
    profile = profiles.profile_of(open_model(str(shapes)), Recipe(), Quiet())
    recipe = Recipe(allocator="knapsack", budget="1.75MB", rest_bits="auto")
    with pytest.raises(MopeqError, match="holds nothing of layers outside the experts"):
        pipeline.plan(str(shapes), recipe, profile)


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_measured(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(MopeqError) as told:
        pipeline.quantize(str(shapes), tmp_path / "out", Recipe(allocator="knapsack", budget="2.1bpw"))
    assert "2.1bpw is too small for shapes-moe-vl at 2, 3, 4 bits" in told.value.what
    assert "the smallest is 2.282bpw; from 4.313bpw on every expert has 4 bits" in str(told.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"allocator": "knapsack", "budget": "3"}, "'3' is not a size"),
        ({"allocator": "knapsack", "budget": "-3bpw"}, "is not a size"),
        ({"allocator": "kmeans", "budget": "3bpw"}, "kmeans knows no --budget"),
        ({"allocator": "knapsack"}, "knapsack needs a --budget"),
    ],
)
def test_budget_and_allocator_belong_together(choices: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Recipe.from_dict(dict(choices))


def test_uniform_widths_to_compare_with_have_no_budget() -> None:
    assert Recipe(allocator="knapsack", budget="3bpw", group_size=32).uniform(4) == Recipe(bits=(4,), group_size=32)


def test_a_budget_alone_is_met_by_the_knapsack() -> None:
    assert Recipe.from_dict({"budget": "3bpw"}) == Recipe(allocator="knapsack", budget="3bpw")


def test_a_recipe_without_a_budget_has_the_digest_it_always_had() -> None:
    assert "budget" not in Recipe().to_dict()
    assert Recipe(allocator="knapsack", budget="3bpw").to_dict()["budget"] == "3bpw"
