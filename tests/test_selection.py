"""The map that is taken where several are tried: within the budget, and never worse than uniform widths."""

from dataclasses import replace
from pathlib import Path

import pytest

from mopeq_hub import Recipe, selection, workplace
from mopeq_hub.allocation import allocate
from mopeq_hub.bitmap import BitMap
from mopeq_hub.budget import room_for
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.trials import alone, try_maps, widths_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.profiles import profile_of
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import Questions, read_questions
from mopeq_hub.selection import PAPER, Candidate, candidates, select, settled
from mopeq_hub.sensitivity.given import Given

BEST = Recipe(signal="best", allocator="measured", budget="3.297bpw")
MEASURED = replace(BEST, signal="distortion")


@pytest.fixture(scope="module")
def model(shapes: Path) -> Model:
    return open_model(str(shapes))


@pytest.fixture
def asked(some_questions: Path) -> Questions:
    return read_questions(some_questions)


def tried(model: Model, recipe: Recipe) -> tuple[list[Candidate], int]:
    """What the recipe tries, and the bytes that there are for it."""
    room, profile = room_for(model, recipe), profile_of(model, recipe, Quiet())
    assert room is not None
    return candidates(model, recipe, room, profile, lambda signal: profile_of(model, Recipe(), Quiet())), room.capacity


def test_what_is_tried_meets_the_budget_but_for_the_papers(model: Model) -> None:
    found, capacity = tried(model, MEASURED)
    names = ["distortion, by expert", "distortion, by projection", "distortion, by layer", "uniform 3 bits", PAPER]
    assert [each.name for each in found] == names
    assert all(each.nbytes <= capacity for each in found[:-1])
    assert found[-1].nbytes > capacity
    assert found[-1].bitmap == allocate(profile_of(model, Recipe(), Quiet()), Recipe())


def test_where_the_rest_competes_it_has_a_place_in_every_map_that_is_tried(model: Model) -> None:
    found, capacity = tried(model, Recipe(allocator="measured", budget="0.3x", rest_bits="auto"))
    names = ["hessian, by expert", "hessian, by projection", "hessian, by layer", "uniform 2 bits", PAPER]
    assert [each.name for each in found] == names
    assert {frozenset(each.bitmap.rest) for each in found} == {frozenset(matrix.name for matrix in model.layout.rest)}
    assert [set(each.bitmap.rest.values()) for each in found[-2:]] == [{4}, {4}]
    assert all(each.nbytes <= capacity for each in found[:-1])


def test_the_rest_does_not_compete_where_the_model_cannot_be_run(
    model: Model, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workplace, "free_memory", lambda: 10**6)
    with pytest.raises(MopeqError, match="--rest-bits auto runs the whole model, which takes 2 GB"):
        settled(replace(BEST, budget="0.3x", rest_bits="auto"), model, asked)


def test_the_map_of_least_divergence_is_taken_and_all_are_described(model: Model, asked: Questions) -> None:
    profile = profile_of(model, MEASURED, Quiet())
    taken = select(model, MEASURED, profile, Given(questions=asked), Quiet(), LOCAL)
    assert taken.document is not None
    rows = {row["name"]: row for row in taken.document["tried"]}
    (chosen,) = (row for row in rows.values() if row["chosen"])
    assert chosen["kl"] == min(row["kl"] for row in rows.values() if row["name"] != PAPER)
    assert chosen["kl"] <= rows["uniform 3 bits"]["kl"]
    assert taken.document["questions"] == {"name": asked.name, "sha256": asked.digest, "limit": asked.limit}
    (figure,) = try_maps(model, [widths_of(model, taken.bitmap, MEASURED)], MEASURED, asked, Quiet())
    assert figure["kl_mean"] == pytest.approx(chosen["kl"])


def test_an_allocator_that_tries_nothing_is_as_it_was(model: Model) -> None:
    profile = profile_of(model, Recipe(), Quiet())
    taken = select(model, Recipe(), profile, Given(), Quiet(), LOCAL)
    assert taken.document is None
    assert taken.bitmap == allocate(profile, Recipe())


def test_the_original_itself_has_no_divergence_and_one_expert_little(model: Model, asked: Questions) -> None:
    expert = next(iter(model.layout.experts.values()))
    uniform = widths_of(model, BitMap.uniform(model.layout, 2), Recipe())
    nothing, one, all_of_them = try_maps(model, [{}, alone(expert, 2), uniform], Recipe(), asked, Quiet())
    assert nothing["kl_mean"] == 0
    assert nothing["top1_agreement"] == 1
    assert 0 <= one["kl_mean"] < all_of_them["kl_mean"]


def test_best_runs_the_model_where_memory_holds_it(
    model: Model, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = settled(BEST, model, asked)
    assert (here.signal, here.allocator) == ("fisher", "measured")
    monkeypatch.setattr(workplace, "free_memory", lambda: 1_000_000_000)
    small = settled(BEST, model, asked)
    assert (small.signal, small.allocator, small.questions) == ("distortion", "knapsack", "")
    monkeypatch.undo()
    assert settled(BEST, model, asked, whole=False) == small


def test_the_questions_that_maps_are_tried_on_are_part_of_the_recipe(model: Model, asked: Questions) -> None:
    one, other, fewer = (
        settled(MEASURED, model, each) for each in (asked, read_questions(None), replace(asked, limit=100))
    )
    assert len({one.digest, other.digest, fewer.digest}) == 3
    assert settled(Recipe(), model, asked) == Recipe()


def test_a_machine_that_cannot_try_maps_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "free_memory", lambda: 1_000_000_000)
    with pytest.raises(MopeqError, match="--allocator measured runs the model, which takes 2 GB"):
        selection.check_memory(model, MEASURED)
