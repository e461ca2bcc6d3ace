"""Sizes that are summed over groups of like matrices are those of every tensor that would be written."""

import random
from pathlib import Path

import pytest

from mopeq_hub.bitmap import BitMap, bytes_of, competing, width_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.quantization.stream import plan_units
from mopeq_hub.recipe import Recipe
from mopeq_hub.sizes import output_bytes, sizes
from tests import tiny

RECIPES = (Recipe(group_size=32), Recipe(group_size=32, rest_bits=16), Recipe(group_size=32, rest_bits=8))
COMPETING = Recipe(group_size=32, budget="0.3x", allocator="knapsack", rest_bits="auto")


@pytest.fixture(scope="module")
def models(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """In several files, with experts in one tensor, and with layers that do not divide into groups."""
    folder = tmp_path_factory.mktemp("models")
    made = [tiny.qwen3_vl_moe(folder / "fused"), tiny.llava_over_deepseek_v2(folder / "apart"), shapes]
    return [open_model(str(each), named=False) for each in made]


def mixed(model: Model, recipe: Recipe) -> BitMap:
    draw = random.Random(0)
    bits = {place: draw.choice((2, 3, 4)) for place in model.layout.projections}
    return BitMap(bits, {matrix.name: draw.choice((2, 8, 16)) for matrix in competing(model.layout, recipe)})


@pytest.mark.parametrize("recipe", [*RECIPES, COMPETING])
def test_each_file_comes_to_the_tensors_that_are_planned_of_it(models: list[Model], recipe: Recipe) -> None:
    for model in models:
        bitmap = mixed(model, recipe)
        units = plan_units(model.checkpoint, model.layout, bitmap, recipe)
        planned = {
            unit.shard: sum(tensor.nbytes for output in unit.outputs for tensor in output.tensors) for unit in units
        }
        assert output_bytes(model, bitmap, recipe) == planned
        assert sizes(model, recipe, bitmap)["published_bytes"] == sum(planned.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_bits_per_weight_are_the_bytes_of_each_matrix_over_its_weights(models: list[Model], recipe: Recipe) -> None:
    for model in models:
        bitmap, routed = mixed(model, recipe), model.layout.routed
        rest = [matrix for matrix in model.layout.rest if width_of(matrix, bitmap, recipe) != 16]
        weights = [sum(matrix.size for matrix in matrices) for matrices in (routed, rest)]
        nbytes = [bytes_of(matrices, bitmap, recipe) for matrices in (routed, rest)]
        found = sizes(model, recipe, bitmap)
        assert found["expert_weights"] == weights[0] == model.layout.routed_size
        assert found["experts_bpw"] == round(8 * nbytes[0] / weights[0], 4)
        assert found["quantized_bpw"] == round(8 * sum(nbytes) / sum(weights), 4)
        larger = bytes_of(routed, BitMap.uniform(model.layout, 4), recipe) - nbytes[0]
        assert found["uniform_4bit_bytes"] == found["published_bytes"] + larger
