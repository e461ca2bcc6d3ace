"""Several budgets of one model in one repo: each a branch (beside a folder, a folder), main the one recommended.

All are of one commit of the source, and measured on the same questions. Each is a publication of its own, which a run
that was stopped does not make again; main is written last, when all of them are there.
"""

import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub.budget import room_for
from mopeq_hub.delivery import card, deliver, is_there, signer_named, unchanged
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.fidelity.variants import inputs_of, of_main
from mopeq_hub.hub import MAIN, Destination, destination_for
from mopeq_hub.model import Model, open_model
from mopeq_hub.pipeline import Plan, Publication, bound_for, check_apart, plan, publish
from mopeq_hub.planning import checked_needs, settled_for, with_given
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.questions import DEFAULT_TOKENS, Questions, read_questions
from mopeq_hub.recipe import BEST, MEASURED, Recipe
from mopeq_hub.recipes import best, for_budgets
from mopeq_hub.selection import try_together
from mopeq_hub.sensitivity import Profile
from mopeq_hub.signing import Signer


@dataclass(frozen=True)
class Variants:
    """What went where: the publication of each budget, in the order in which they were asked for, and that of main."""

    publications: dict[str, Publication]
    main: Publication


def publish_variants(
    model: str,
    to: str | None,
    recipe: Recipe | None,
    budgets: Sequence[str],
    *,
    questions: str | Path | None = None,
    calibration: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    space: bool = True,
    private: bool = False,
    dry_run: bool = False,
    again: Collection[str] = (),
    sign: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Variants:
    """Publish a model at several budgets: each on the branch of its name, and on main the one that is recommended, with
    a card that compares all of them.

    Recommended is what `fidelity.variants.recommended` says. recipe: all choices but the budget, None for `best`;
    without one of its own its allocator is the one that meets budgets. again: names of variants, and `main`, that are
    made anew even where the destination says that it holds them. Everything else as in `publish`, `options` too.
    Raises MopeqError where a budget cannot be met, before anything is done, and as `publish` does; what was published
    until then stays, and main is as it was.
    """
    progress = progress or Quiet()
    recipes = for_budgets(recipe or best(), budgets)
    destination, signer = destination_for(to, model, private=private), signer_named(sign)
    if destination.branch:
        raise UsageError(f"{to} is a branch, and each of several budgets gets one", "name the repo alone")
    progress.say(f"publishing {model} to {destination.describe()}, at {', '.join(recipes)}")
    if not dry_run:
        destination.check_writable(space=space)
    asked = read_questions(questions, fidelity_tokens)
    opened = open_model(model, trust_remote_code=trust_remote_code)
    check_apart(destination.folder, opened)
    _check_budgets(opened, recipes)
    # Raises where something is there that must not be lost.
    destination.publication()

    def publish_one(name: str, again: bool) -> Publication:
        return publish(
            opened, destination.variant(name), recipes[name], questions=questions, calibration=calibration,
            fidelity_tokens=fidelity_tokens, space=False, private=private, dry_run=dry_run, again=again, sign=sign,
            progress=progress, **options,
        )  # fmt: skip

    _try_together(opened, recipes, destination, asked, signer, calibration, dry_run, progress, **options)
    made = {name: publish_one(name, name in again) for name in recipes}
    if len({_inputs(each) for each in made.values()}) > 1:
        # What was there already was measured on other questions, and says nothing beside what is new.
        others = [name for name, each in made.items() if _inputs(each) != (asked.digest, asked.limit)]
        made |= {name: publish_one(name, again=True) for name in others}
    chosen, fidelity = of_main({name: (each.manifest, each.fidelity or {}) for name, each in made.items()})
    main = replace(made[chosen], destination=destination.name, fidelity=fidelity, commit=None, note=None)
    there = MAIN not in again and is_there(destination, main.name, signer) and _fidelity_of(destination) == fidelity
    if there:
        main = unchanged(destination, main.name, opened.source.location, space=space, dry_run=dry_run)
    elif dry_run:
        main = replace(main, changed=True)
    else:
        with destination.workplace(main.name) as work:
            folder = _folder_of_main(work / "main", destination, destination.variant(chosen), main)
            card(folder, destination, space=space)
            location = opened.source.location
            main = deliver(folder, destination, signer, location, work, space=space, progress=progress)
    return Variants(made, main)


def plan_variants(
    model: str,
    recipe: Recipe | None,
    budgets: Sequence[str],
    profile: Profile | None = None,
    progress: Progress | None = None,
    *,
    calibration: str | Path | None = None,
    questions: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    trust_remote_code: bool = False,
) -> dict[str, Plan]:
    """What `plan` says of each budget. Raises MopeqError where one cannot be met."""
    recipes = for_budgets(recipe or best(), budgets)
    opened = open_model(model, trust_remote_code=trust_remote_code)
    _check_budgets(opened, recipes)
    asked: dict[str, Any] = {"questions": questions, "fidelity_tokens": fidelity_tokens, "calibration": calibration}
    return {name: plan(opened, each, profile, progress, **asked) for name, each in recipes.items()}


def _check_budgets(model: Model, recipes: dict[str, Recipe]) -> None:
    """Raises MopeqError, which names all budgets that cannot be met, where there is one."""
    troubles = []
    for each in recipes.values():
        try:
            room_for(model, each)
        except MopeqError as error:
            troubles.append(error)
    if troubles:
        *first, last = troubles
        raise MopeqError("; ".join([*map(str, first), last.what]), last.hint)


def _try_together(
    model: Model,
    recipes: dict[str, Recipe],
    destination: Destination,
    questions: Questions,
    signer: Signer | None,
    calibration: str | Path | None,
    dry_run: bool,
    progress: Progress,
    *,
    engine: Engine = LOCAL,
    stream: bool | None = None,
    **options: Any,
) -> None:
    """Where maps are tried: those of all budgets that are not there yet at one go, so that the original is loaded once.

    Raises MopeqError where the machine cannot publish them, as `publish` does.
    """
    bound = bound_for(destination, engine, stream, dry_run=dry_run)
    left = []
    for name, each in recipes.items():
        if each.signal != BEST and each.allocator != MEASURED:
            return
        recipe, given = with_given(each, calibration)
        recipe = settled_for(model, recipe, questions, **bound)
        published = manifests.publication_name(recipe, model.source.commit)
        if recipe.allocator == MEASURED and not is_there(destination.variant(name), published, signer):
            checked_needs(model, recipe, questions, **bound)
            left.append(recipe)
    if len(left) > 1:
        try_together(model, left, replace(given, questions=questions), progress, engine)


def _inputs(publication: Publication) -> tuple[str, int]:
    """Which questions it was measured on, and how many of their tokens."""
    return inputs_of(publication.fidelity or {})


def _fidelity_of(destination: Destination) -> Any:
    return json.loads(destination.read_text(manifests.FIDELITY_NAME))


def _folder_of_main(folder: Path, destination: Destination, chosen: Destination, main: Publication) -> Path:
    """What main is to hold, made of the variant that it takes over; where that is a repo, its weights are there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    published = chosen.look()
    for name in main.manifest["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith(".safetensors"):
            shutil.copyfile(published.source.path(name), folder / name)
        elif destination.folder:
            _share(published.source.path(name), folder / name)
    manifests.write_json(folder / manifests.MANIFEST_NAME, main.manifest, "mopeq")
    manifests.write_json(folder / manifests.FIDELITY_NAME, main.fidelity or {}, "fidelity")
    return folder


def _share(path: Path, target: Path) -> None:
    """The same file under a second name, which takes no room; a copy where the disk knows no such thing."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
