"""What gets one width together: an expert, one of its projections, all experts of a layer, or a layer outside them."""

import pytest

from mopeq_hub import Recipe
from mopeq_hub.allocation import Room, allocate
from mopeq_hub.allocation.room import Member
from mopeq_hub.bitmap import BitMap
from mopeq_hub.errors import UsageError
from mopeq_hub.experts import Expert
from mopeq_hub.sensitivity import Profile

PARTS = ("gate", "up", "down")


def profile(*layers: list[tuple[float, float, float]], **more: object) -> Profile:
    """By layer and expert the sensitivities of gate, up and down."""
    experts = {
        Expert(layer, index): {name: (value,) for name, value in zip(PARTS, values, strict=True)}
        for layer, row in enumerate(layers)
        for index, values in enumerate(row)
    }
    return Profile({"name": "hessian"}, experts, **more)  # type: ignore[arg-type]


def room(of: Profile, recipe: Recipe, capacity: int) -> Room:
    """Everything of one shape: 100 bytes for each bit."""
    members: list[Member] = [(expert, name) for expert in of.experts for name in PARTS]
    return Room({member: tuple(100 * bits for bits in recipe.widths) for member in [*members, *of.rest]}, capacity)


def test_k_means_clusters_the_layers_by_the_sums_of_their_experts() -> None:
    # By expert the last layer has the most sensitive one, but it is the second of which most is lost.
    values = profile([(1, 1, 1)] * 3, [(5, 5, 5)] * 3, [(0, 0, 1), (0, 0, 1), (20, 0, 0)])
    assert allocate(values, Recipe(granularity="layer")).by_layer() == {0: [2] * 3, 1: [4] * 3, 2: [3] * 3}
    by_expert = allocate(values, Recipe()).by_layer()
    assert by_expert[2][2] == 4
    assert by_expert[2][0] == 2


def test_projections_of_an_expert_are_written_one_by_one_only_where_they_differ() -> None:
    values = profile([(1, 1, 9), (5, 5, 5)])
    bitmap = allocate(values, Recipe(granularity="projection"))
    assert bitmap.by_layer() == {0: [{"gate": 2, "up": 2, "down": 4}, 3]}
    assert allocate(values, Recipe(bits=(2, 4))).by_layer() == {0: [2, 4]}


def test_a_budget_is_spent_on_the_layer_of_which_most_is_lost() -> None:
    values = profile([(1, 1, 1)] * 2, [(5, 5, 5)] * 2)
    recipe = Recipe(allocator="knapsack", budget="3bpw", granularity="layer", bits=(2, 4))
    assert allocate(values, recipe, room(values, recipe, 12 * 300)).by_layer() == {0: [2, 2], 1: [4, 4]}


@pytest.mark.parametrize(("sensitivity", "expected"), [(1e5, 16), (3.0, 4), (0.001, 2)])
def test_the_rest_competes_on_one_scale_with_widths_that_experts_have_not(sensitivity: float, expected: int) -> None:
    values = profile([(1, 1, 1)] * 4, rest={"layers.0.q_proj": (sensitivity,), "layers.0.odd": (1e9,)})
    recipe = Recipe(allocator="knapsack", budget="1GB", rest_bits="auto")
    # The least that all need, and what one matrix may want beyond it, or all experts for a step.
    place = room(values, recipe, 13 * 200 + 1500)
    sizes = {member: size for member, size in place.sizes.items() if member != "layers.0.odd"}
    bitmap = allocate(values, recipe, Room(sizes, place.capacity))
    assert bitmap.rest == {"layers.0.q_proj": expected}, "what has no place in the room does not divide"
    assert set(bitmap.bits.values()) <= {2, 3, 4}


def test_costs_are_taken_as_they_are_measured() -> None:
    experts = {Expert(0, 0): {"gate": (4.0, 1.0, 0.5)}, Expert(0, 1): {"gate": (3.0, 2.9, 2.8)}}
    values = Profile({"name": "x"}, experts, widths=(2, 4, 8), rest={"layers.0.q_proj": (9.0, 9.0, 0.1)})
    recipe = Recipe(bits=(2, 4), allocator="knapsack", budget="1GB", rest_bits="auto")
    members: list[Member] = [*((expert, "gate") for expert in experts), "layers.0.q_proj"]
    sizes = dict.fromkeys(members, (200, 400, 800, 1600))
    assert allocate(values, recipe, Room(sizes, 1400)) == BitMap(
        {(Expert(0, 0), "gate"): 4, (Expert(0, 1), "gate"): 2}, {"layers.0.q_proj": 8}
    )


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"granularity": "layer", "scope": "layer"}, "gives a layer one width.*leave out --scope layer"),
        ({"rest_bits": "auto"}, "needs an allocator that spends a budget, and a --budget of all files, in GB, MB or x"),
        ({"rest_bits": "auto", "budget": "3bpw"}, "bpw counts the experts alone"),
        ({"rest_bits": "auto", "budget": "3GB", "allocator": "rank"}, "needs an allocator that spends a budget"),
        ({"rest_bits": "auto", "budget": "3GB", "scope": "layer"}, "lets all layers of the model compete"),
        ({"rest_bits": "some"}, "'some' does not exist; choose from 2, 3, 4, 8, 16, auto"),
    ],
)
def test_choices_that_make_no_sense_together_are_refused_in_one_line(choices: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as told:
        Recipe.from_dict(dict(choices))
    assert "\n" not in str(told.value)


def test_the_rest_beside_uniform_experts_has_one_width() -> None:
    recipe = Recipe(allocator="knapsack", budget="1GB", rest_bits="auto")
    assert recipe.uniform(3) == Recipe(bits=(3,))
    assert recipe.paper() == Recipe()
    assert Recipe.from_dict(recipe.to_dict()) == recipe
