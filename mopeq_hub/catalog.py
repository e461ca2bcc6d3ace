"""The catalog: which publications are to be kept up to date, as catalog.yaml says it.

A list of mappings: `model` and `to`, and where wanted `recipe`, `questions`, `space`, `private` and
`trust_remote_code`, each as on the command line of `publish`; of several budgets that a recipe lists each gets a
branch. An entry that is not in order does not keep the others from being done.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.hub import MAIN, destination_for
from mopeq_hub.recipe import Recipe
from mopeq_hub.recipes import budgets_of, choices_of, for_budgets, with_default
from mopeq_hub.untrusted import read_yaml, read_yaml_file

VARIABLE = "MOPEQ_CATALOG"
"""The environment variable that may hold what CATALOG would be."""

_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "to": (str,),
    "recipe": (dict, str),
    "questions": (str,),
    "space": (bool,),
    "private": (bool,),
    "trust_remote_code": (bool,),
}
_WORDS = {str: "text", dict: "a mapping", bool: "true or false"}
_LONG = 200
_FORM = "write `- model: owner/name`, and under it `to: owner/name`, or a folder such as ./mine"


@dataclass(frozen=True)
class Entry:
    """One publication to keep, or one of each of several budgets. number: its place in the catalog, from 1. budgets:
    as they are written, where there are several; `recipe` then has the first."""

    number: int
    model: str
    to: str
    recipe: Recipe
    questions: str | None = None
    space: bool = True
    private: bool = False
    trust_remote_code: bool = False
    budgets: tuple[str, ...] = ()

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of each of its publications, by the name of its branch."""
        return for_budgets(self.recipe, self.budgets) if self.budgets else {MAIN: self.recipe}

    def written(self) -> dict[str, Any]:
        """The entry as a catalog has it, in JSON types."""
        recipe = {
            name: value for name, value in self.recipe.to_dict().items() if name not in ("calibration", "questions")
        }
        recipe |= {"budget": list(self.budgets)} if self.budgets else {}
        more: dict[str, Any] = {"questions": self.questions} if self.questions else {}
        more |= {"trust_remote_code": True} if self.trust_remote_code else {}
        return {
            "model": self.model, "to": self.to, "recipe": recipe, "space": self.space, "private": self.private,
            **more,
        }  # fmt: skip


@dataclass(frozen=True)
class BrokenEntry:
    """An entry that says nothing that could be done; `to` and `model` are empty where it names none."""

    number: int
    model: str
    to: str
    error: str


def read_catalog(written: str) -> list[Entry | BrokenEntry]:
    """The entries of a catalog: a YAML file, or the list itself, in YAML or JSON.

    Raises UsageError where it is no list, MopeqError where it cannot be read at all.
    """
    inline = _is_inline(written)
    content = read_yaml(written, "the catalog") if inline else read_yaml_file(Path(written).expanduser(), "the catalog")
    if not isinstance(content, list):
        raise UsageError(f"{'the catalog' if inline else written} is not a list of publications", _FORM)
    taken: dict[str, int] = {}
    return [_read(number, item, taken) for number, item in enumerate(content, 1)]


def name_of(written: str) -> str:
    """What the catalog is called: the name of its file, without the ending."""
    return "catalog" if _is_inline(written) else Path(written).stem


def chosen(entries: Iterable[Entry | BrokenEntry], only: Iterable[str]) -> list[Entry | BrokenEntry]:
    """Those entries that publish to one of these destinations, or all where none is named.

    Raises UsageError on a destination that is in no entry.
    """
    wanted, found = {_place(to): to for to in only}, list(entries)
    if not wanted:
        return found
    missing = set(wanted) - {_place(entry.to) for entry in found}
    if missing:
        raise UsageError(f"the catalog has no {wanted[min(missing)]}", "name a destination as the catalog does")
    return [entry for entry in found if _place(entry.to) in wanted]


def _is_inline(written: str) -> bool:
    return "\n" in written or written.lstrip().startswith(("[", "- "))


def _read(number: int, item: Any, taken: dict[str, int]) -> Entry | BrokenEntry:
    """One entry; `taken` remembers which destination belongs to which."""
    try:
        entry = _entry(number, item)
        places = _places(entry)
        for place in places:
            if place in taken:
                raise UsageError(
                    f"entry {taken[place]} publishes there already", "give each entry a destination of its own"
                )
        taken |= dict.fromkeys(places, number)
        return entry
    except MopeqError as error:
        trouble = str(error)
    except OSError as error:
        trouble = f"its destination cannot be one: {(error.strerror or '').lower()}"
    return BrokenEntry(number, _name(item, "model"), _name(item, "to"), trouble)


def _entry(number: int, item: Any) -> Entry:
    if not isinstance(item, dict):
        raise UsageError("it is not a mapping", _FORM)
    unknown = [str(key) for key in item if key not in _KINDS]
    if unknown:
        raise UsageError(f"it has an unknown key {', '.join(unknown)}", f"choose from {', '.join(_KINDS)}")
    for key in ("model", "to"):
        if item.get(key) in (None, ""):
            raise UsageError(f"it has no {key}", _FORM)
    values = {key: value for key, value in item.items() if value is not None}
    for key, value in values.items():
        if type(value) not in _KINDS[key]:
            kinds = " or ".join(_WORDS[kind] for kind in _KINDS[key])
            raise UsageError(f"its {key} is {_shown(value)}, not {kinds}", "correct it")
        if isinstance(value, str) and not value.isprintable():
            raise UsageError(f"its {key} holds control characters", "write it on one line")
    choices = choices_of(values.get("recipe"))
    budgets = budgets_of(choices.get("budget"))
    if "budget" in choices:
        choices["budget"] = budgets[0] if budgets else ""
    recipe, several = Recipe.from_dict(with_default(choices)), len(budgets) > 1
    if several:
        for_budgets(recipe, budgets)
        if destination_for(values["to"], values["model"]).branch:
            raise UsageError(f"{values['to']} is a branch, and each of several budgets gets one", "name the repo alone")
    return Entry(number, **{**values, "recipe": recipe, "budgets": tuple(map(str, budgets)) if several else ()})


def _places(entry: Entry) -> list[str]:
    """Every place that the entry publishes to, the same for all spellings of one."""
    destination = destination_for(entry.to, entry.model)
    return [_place(entry.to), *(_place(destination.variant(budget).name) for budget in entry.budgets)]


def _place(to: str) -> str:
    """The same for all spellings of a destination."""
    if not to:
        return ""
    destination = destination_for(to, to)
    return str(destination.folder) if destination.folder else destination.name.casefold()


def _name(item: Any, key: str) -> str:
    """What a broken entry says there, if that can be shown."""
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, str) and value.isprintable() and len(value) < _LONG else ""


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return repr(value)[:100]
