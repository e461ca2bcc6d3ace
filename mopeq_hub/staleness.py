"""Whether what an entry of a catalog names is there as it should be, and why not: found from the destination alone."""

from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.catalog import Entry
from mopeq_hub.check import check
from mopeq_hub.delivery import compared_at, place_of, published_manifest
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.variants import inputs_of, of_main
from mopeq_hub.hub import MAIN, Destination, destination_for
from mopeq_hub.manifest import FIDELITY_NAME, MANIFEST_NAME, publication_name
from mopeq_hub.model import Model, open_config, open_model
from mopeq_hub.planning import settled_for, with_given
from mopeq_hub.questions import Questions, read_questions
from mopeq_hub.recipe import BEST, FORMAT_VERSION, MEASURED, Recipe
from mopeq_hub.selection import settled_anywhere
from mopeq_hub.source import open_source
from mopeq_hub.untrusted import read_object

FOREIGN = "it brings no foreign code and no pickles"
"""The check that fails over files that are not the publication's, which publishing it again would leave there."""
_DAMAGED = "files of the publication are missing or damaged"
_NOTHING = "nothing is published there"


def stale_for(entry: Entry) -> tuple[list[str], Set[str]]:
    """Why an entry has to be published again, in words, nothing where it is as it should be; and which branches say
    that they hold just what they should, and do not.

    Raises MopeqError where it cannot be known, or publishing again would not help.
    """
    wanted = {name: with_given(recipe, None)[0] for name, recipe in entry.recipes().items()}
    settling, destination = _Settling(entry), destination_for(entry.to, entry.model)
    if not entry.budgets:
        budget, compared = entry.recipe.budget, compared_at(destination)
        names = settling.names(wanted[MAIN])
        listed = compared[budget] if compared.get(budget) in names else names[0]
        place = place_of(destination, compared, budget, listed)
        reasons, is_damaged = _stale(place, wanted[MAIN], settling)
        branch = MAIN if place is destination else entry.recipe.budget
        return reasons, {branch} if is_damaged else set()
    # First, since it raises where something is in main that must not be lost.
    published = destination.publication()
    variants = {name: destination.variant(name) for name in wanted}
    found = {name: _stale(variants[name], recipe, settling) for name, recipe in wanted.items()}
    reasons = list(_told_together({name: why for name, (why, _) in found.items()}))
    damaged = {name for name, (_, is_damaged) in found.items() if is_damaged}
    why_main, is_damaged = _stale_main(destination, published, variants, look=not reasons)
    reasons += [f"{MAIN}: {why}" for why in why_main if why not in reasons]
    return reasons, {*damaged, MAIN} if is_damaged else damaged


def failing(destination: Destination) -> list[str]:
    """What the check finds wrong with the publication. Raises MopeqError where publishing again would leave it so."""
    troubles = [finding for finding in check(destination.name, load=False) if finding.trouble]
    for finding in troubles:
        if finding.subject == FOREIGN:
            raise MopeqError(f"{destination.name} fails its check: {finding.trouble}", "take that file away")
    return [f"its check fails: {finding.trouble}" for finding in troubles]


class _Settling:
    """What an entry's recipes come to. The model is opened only where a publication is not as it should be."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        # What is trusted is pinned with the weights.
        trusted = entry.trust_remote_code
        source = open_config(entry.model, trusted)[0] if trusted else open_source(entry.model)
        self.commit = source.commit

    @cached_property
    def _questions(self) -> Questions:
        return read_questions(self._entry.questions)

    @cached_property
    def _model(self) -> Model:
        return open_model(self._entry.model, trust_remote_code=self._entry.trust_remote_code)

    def names(self, recipe: Recipe) -> list[str]:
        """The publications that a recipe may be of: what `best` stands for depends on a machine's memory, and is no
        reason to publish anything again."""
        either = settled_anywhere(recipe, self._questions) if _is_open(recipe) else [recipe]
        return [publication_name(each, self.commit) for each in either]

    def here(self, recipe: Recipe) -> Recipe:
        """The recipe as publishing it here would settle it."""
        if not _is_open(recipe):
            return recipe
        return settled_for(self._model, recipe, self._questions, workplace.home(), to_hub=True, stream=None)


def _is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves something to the machine or to the questions."""
    return recipe.signal == BEST or recipe.allocator == MEASURED


def _stale(destination: Destination, recipe: Recipe, settling: _Settling) -> tuple[list[str], bool]:
    """Why one publication has to be made again, and whether the destination says that it holds it, and does not."""
    published = destination.publication()
    if published in settling.names(recipe):
        reasons = failing(destination)
        return reasons, bool(reasons)
    here, manifest = settling.here(recipe), _manifest(destination)
    if manifest is None:
        return [_NOTHING], False
    reasons = list(_changes(manifest, settling.commit, here))
    if published is None:
        reasons.append(_DAMAGED)
    return reasons or [f"it holds {published}, not {publication_name(here, settling.commit)}"], False


def _stale_main(
    destination: Destination, published: str | None, variants: Mapping[str, Destination], *, look: bool
) -> tuple[list[str], bool]:
    """The same of the main that compares these variants. look: whether they are in order, and it can be held against
    them."""
    if _manifest(destination) is None:
        return [_NOTHING], False
    compared = compared_at(destination)
    if set(compared) != set(variants):
        before = ",".join(compared) or "a single one"
        return [f"the budgets changed from {before} to {','.join(variants)}"], False
    if not look:
        return [], False
    made = {
        name: (published_manifest(place), read_object(place.read_text(FIDELITY_NAME)))
        for name, place in variants.items()
    }
    if len({inputs_of(fidelity) for _, fidelity in made.values()}) > 1:
        return ["what it compares was measured on different questions"], False
    chosen, fidelity = of_main(made)
    if published is None:
        return [_DAMAGED], False
    wanted = made[chosen][0]["publication"], fidelity
    if (published, read_object(destination.read_text(FIDELITY_NAME))) != wanted:
        return [f"it is not {chosen}, the recommended one, compared with the others as they are"], False
    reasons = failing(destination)
    return reasons, bool(reasons)


def _told_together(reasons: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """What is so of all of them once, everything else with the name of the one that it is of."""
    shared = [why for why in next(iter(reasons.values())) if all(why in each for each in reasons.values())]
    yield from shared
    for name, each in reasons.items():
        yield from (f"{name}: {why}" for why in each if why not in shared)


def _manifest(destination: Destination) -> dict[str, Any] | None:
    try:
        return read_object(destination.read_text(MANIFEST_NAME))
    except MopeqError:
        return None


def _changes(manifest: dict[str, Any], commit: str, recipe: Recipe) -> Iterator[str]:
    """What is not as it was when this was published. The manifest is a stranger's: any part may be missing."""
    source, tool, before = (_part(manifest, name) for name in ("source", "tool", "recipe"))
    if source.get("commit") != commit:
        yield f"the source's commit moved from {_short(source.get('commit'))} to {_short(commit)}"
    now = recipe.to_dict()
    changed = [
        f"{name} from {_value(before.get(name))} to {_value(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        yield f"the recipe changed: {', '.join(changed)}"
    if tool.get("format_version") != FORMAT_VERSION:
        yield f"mopeq-hub's format went from version {_value(tool.get('format_version'))} to {FORMAT_VERSION}"


def _part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    part = manifest.get(name)
    return part if isinstance(part, dict) else {}


def _short(commit: object) -> str:
    return commit[:12] if isinstance(commit, str) else "an unknown one"


def _value(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "nothing" if value is None else str(value)[:100]
