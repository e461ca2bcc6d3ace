"""Recipes as people write them down, in a catalog or for `--recipe`: a name, or a mapping of choices in YAML."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mopeq_hub.errors import UsageError
from mopeq_hub.recipe import BEST, MEASURED, Recipe
from mopeq_hub.untrusted import read_yaml, read_yaml_file

NAMED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "mopeq": MappingProxyType({"signal": "hessian", "allocator": "kmeans"}),
        "best": MappingProxyType({"signal": BEST, "allocator": MEASURED, "rest_bits": 8}),
    }
)
"""What each named recipe chooses; everything else is at its default. `mopeq` is the paper's method. `best` meets a
budget; where none is named, that of uniform widths in the middle of those that experts may get; and leaves 8 bits to
the rest, which every token passes through, where 4 cost more than they save."""
_DECIDING = {"signal", "inputs", "estimator", "probes", "allocator", "scope"}
"""Choices by which a user has said how widths are found."""
_FILES = (".yaml", ".yml", ".json")
_CHOICES = {field.name for field in fields(Recipe)} - {"calibration", "questions"}
"""Digests of files are nobody's to write: they are found from the files."""
_FORM = "write it as {bits: [2, 4], scope: layer}"


def choices_given(text: str) -> dict[str, Any]:
    """The choices of a recipe as `--recipe` takes it: a name, a YAML file, or the mapping itself; nothing for none.

    Raises UsageError on anything else, MopeqError on a file that cannot be read.
    """
    is_file = text.endswith(_FILES) and "\n" not in text and "{" not in text
    return choices_of(read_yaml_file(Path(text), "the recipe") if is_file else read_yaml(text, "the recipe"))


def choices_of(written: Any) -> dict[str, Any]:
    """The choices of a recipe that came out of YAML, which may leave any out. Raises UsageError where it is none."""
    if written is None:
        return {}
    if isinstance(written, str):
        if written not in NAMED:
            known = ", ".join(NAMED)
            raise UsageError(f"there is no recipe {written!r}", f"choose from {known}, name a .yaml file, or {_FORM}")
        return dict(NAMED[written])
    if not isinstance(written, dict):
        raise UsageError(f"a recipe is a mapping of choices, not {type(written).__name__}", _FORM)
    unknown = [str(name) for name in written if name not in _CHOICES]
    if unknown:
        raise UsageError(f"a recipe has no {', '.join(unknown)}", f"choose from {', '.join(sorted(_CHOICES))}")
    widths = {"bits": _widths(written["bits"])} if "bits" in written else {}
    rest = {"rest_bits": _width(written["rest_bits"])} if "rest_bits" in written else {}
    return {**written, **widths, **rest}


def budgets_of(written: Any) -> list[Any]:
    """The budgets that a choice of `budget` lists, `2.5bpw,3.0bpw` or a list of YAML's; one where it is a single one,
    none where there is none. Raises UsageError on an empty one beside others."""
    budgets = [part.strip() for part in written.split(",")] if isinstance(written, str) else written
    if not isinstance(budgets, list):
        return [] if budgets is None else [budgets]
    if len(budgets) > 1 and not all(budgets):
        raise UsageError(f"the budgets {written} are not all sizes", "write them as 2.5bpw,3.0bpw")
    return [each for each in budgets if each]


def for_budgets(recipe: Recipe, budgets: Sequence[Any]) -> dict[str, Recipe]:
    """The recipe of each budget, by its name; without a budget of its own a recipe's allocator becomes one that meets
    them. Raises UsageError on a budget that is none, or is named twice."""
    allocator = recipe.allocator if recipe.budget else "knapsack"
    recipes = {budget: replace(recipe, budget=budget, allocator=allocator) for budget in map(str, budgets)}
    if len({each.budget_parts for each in recipes.values()}) < len(budgets):
        raise UsageError(f"--budget {','.join(map(str, budgets))} names one budget twice", "name each once")
    return recipes


def with_default(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a recipe, with those of `best` where none of them says how widths are found."""
    bits = choices.get("bits") or Recipe.bits
    said = _DECIDING & set(choices) or len(bits) < 2
    chosen = dict(choices) if said else {**NAMED["best"], **choices}
    if chosen.get("signal") == BEST and not chosen.get("budget") and all(type(width) is int for width in bits):
        chosen["budget"] = _middle(bits, chosen.get("group_size") or Recipe.group_size)
    return chosen


def best() -> Recipe:
    """What is done where nobody says how: the recipe `best`."""
    return Recipe.from_dict(with_default({}))


def _middle(bits: Sequence[int], group_size: int) -> str:
    """What uniform experts of the mean width take: its bits, a scale of 16 and a zero point for each group."""
    mean = sum(bits) / len(bits)
    return f"{math.ceil(1000 * (mean + (16 + mean) / group_size)) / 1000:g}bpw"


def _widths(bits: Any) -> list[Any]:
    """As the command line has them, `2,3,4`, as a list, or a single one; what is no number is left for the recipe to
    refuse."""
    parts = bits.split(",") if isinstance(bits, str) else bits if isinstance(bits, list) else [bits]
    return [_width(part) for part in parts]


def _width(part: Any) -> Any:
    return int(part) if isinstance(part, str) and part.strip().isdecimal() else part
