"""Recipes as they are written down: `--recipe` with a name, a file or the choices, and options that count more."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mopeq_hub.errors import MopeqError
from mopeq_hub.options import recipe_options
from mopeq_hub.planning import with_given
from mopeq_hub.recipe import Recipe
from mopeq_hub.recipes import best

app = typer.Typer()


@app.command()
@recipe_options
def show(recipe: Recipe) -> None:
    """Print the recipe."""
    print(json.dumps(recipe.to_dict()))


def given(*options: str) -> Recipe:
    """The recipe that a command gets."""
    ended = CliRunner().invoke(app, list(options), catch_exceptions=False)
    return Recipe.from_dict(json.loads(ended.stdout))


def test_mopeq_is_the_papers() -> None:
    assert given("--recipe", "mopeq") == Recipe()


def test_python_does_what_the_command_line_does_where_nobody_says_how() -> None:
    assert with_given(None, None)[0] == best() == given()


@pytest.mark.parametrize("options", [[], ["--recipe", "best"], ["--recipe", ""], ["--recipe", "{}"]])
def test_without_choices_it_is_the_best_in_the_room_of_uniform_3_bits(options: list[str]) -> None:
    assert given(*options) == Recipe(signal="best", allocator="measured", budget="3.297bpw", rest_bits=8)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        (["--bits", "2,4", "--group-size", "128"], "3.149bpw"),
        (["--bits", "4,8"], "6.344bpw"),
        (["--budget", "1GB"], "1GB"),
    ],
)
def test_the_best_is_given_the_room_of_the_middle_width_or_the_budget(options: list[str], budget: str) -> None:
    recipe = given(*options)
    assert (recipe.signal, recipe.allocator, recipe.budget) == ("best", "measured", budget)


@pytest.mark.parametrize(
    "options", [["--bits", "3"], ["--scope", "layer"], ["--signal", "hessian"], ["--allocator", "kmeans"]]
)
def test_who_says_how_widths_are_found_is_not_given_the_best(options: list[str]) -> None:
    assert (given(*options).signal, given(*options).allocator, given(*options).budget) == ("hessian", "kmeans", "")


@pytest.mark.parametrize(
    "written", ["{bits: [2, 4], scope: layer}", '{"bits": "2,4", "scope": "layer"}', "bits: 2,4\nscope: layer\n"]
)
def test_choices_can_be_written_in_line_or_in_a_file(written: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(written)
    expected = Recipe(bits=(2, 4), scope="layer")
    assert given("--recipe", written) == given("--recipe", str(tmp_path / "recipe.yaml")) == expected


def test_what_is_given_one_by_one_counts_more_even_where_it_is_the_default() -> None:
    recipe = "{bits: 3, symmetric: false, seed: 7, rest_bits: 8, signal: hessian}"
    options = ["--bits", "2,3,4", "--symmetric", "--seed", "0"]
    assert given("--recipe", recipe, *options) == Recipe(rest_bits=8)
    assert given("--recipe", recipe) == Recipe(bits=(3,), symmetric=False, seed=7, rest_bits=8)


def test_the_width_of_the_rest_is_a_number_or_auto_however_it_is_given() -> None:
    expected = Recipe(signal="best", allocator="measured", budget="1GB", rest_bits="auto")
    assert given("--budget", "1GB", "--rest-bits", "auto") == given("--recipe", "{budget: 1GB, rest_bits: auto}")
    assert given("--budget", "1GB", "--rest-bits", "auto") == expected
    assert given("--rest-bits", "8") == given("--recipe", '{rest_bits: "8"}')
    assert given("--rest-bits", "8").rest_bits == 8


def test_a_budget_is_met_by_the_knapsack_however_it_is_given() -> None:
    expected = Recipe(budget="3.0bpw", allocator="knapsack")
    assert Recipe.from_dict({"budget": "3.0bpw"}) == expected
    assert given("--signal", "hessian", "--budget", "3.0bpw") == expected
    assert given("--budget", "3.0bpw") == given("--recipe", "{budget: 3.0bpw}")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("finest", "there is no recipe 'finest'; choose from mopeq"),
        ("[2, 4]", "a recipe is a mapping of choices, not list"),
        ("{bit: 4}", "a recipe has no bit; choose from allocator, bits"),
        ("{calibration: x}", "a recipe has no calibration"),
        ("{1: 2}", "a recipe has no 1"),
        ("{bits: [x]}", "bits x are not whole numbers"),
        ("{bits: null}", "bits None are not whole numbers"),
        ("{seed: 2024-01-01}", "seed '2024-01-01' is not of the type int"),
        ("{bits: *b}", "uses an alias"),
        ("missing.yaml", "the recipe missing.yaml cannot be read: no such file"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(written: str, words: str) -> None:
    with pytest.raises(MopeqError) as raised:
        given("--recipe", written)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
