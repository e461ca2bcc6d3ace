"""A budget: the published files keep within it and use it, and one that cannot be met names those that can."""

from pathlib import Path

import pytest

from mopeq_hub import MopeqError, Recipe, pipeline
from mopeq_hub.errors import UsageError


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
