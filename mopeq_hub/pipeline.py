"""The straight line from a model's name to a publication; each stage also alone, from the files that the one before
left."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import workplace
from mopeq_hub.benchmarks import Benchmarks
from mopeq_hub.delivery import (
    Publication,
    card,
    compared_at,
    completed,
    deliver,
    is_there,
    place_of,
    publish_space_of,
    published_manifest,
    says_the_same,
    signer_named,
    unchanged,
    write_card,
)
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.hub import Destination, HubDestination, destination_for
from mopeq_hub.hub.contents import staged
from mopeq_hub.model import Model, open_model
from mopeq_hub.planning import Plan, checked_needs, plan, settled_for, with_given
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.proof import prove, prove_on_the_way
from mopeq_hub.questions import DEFAULT_TOKENS, Questions, read_questions
from mopeq_hub.recipe import Recipe
from mopeq_hub.remote_code import differing
from mopeq_hub.repo import QuantizedRepo, build, location_of, quantized_before
from mopeq_hub.report.spread import in_words
from mopeq_hub.sensitivity import Profile
from mopeq_hub.space import render_space, run_local
from mopeq_hub.untrusted import TRUST
from mopeq_hub.version import __version__

__all__ = [
    "Plan",
    "Publication",
    "card",
    "evaluate",
    "plan",
    "publish",
    "publish_space",
    "push",
    "quantize",
    "run_space",
]


def publish(
    model: str | Model,
    to: str | Destination | None = None,
    recipe: Recipe | None = None,
    *,
    questions: str | Path | None = None,
    calibration: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    compare: bool | None = None,
    benchmarks: Benchmarks | None = None,
    space: bool = True,
    private: bool = False,
    dry_run: bool = False,
    stream: bool | None = None,
    again: bool = False,
    sign: str | None = None,
    engine: Engine = LOCAL,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Publication:
    """Quantize a model expert by expert, prove the result, and publish it with its card and its Space.

    model: a folder, owner/name[@revision] on the Hub, or an opened Model. to: a Hub repo owner/name[@branch] or a
    folder; None chooses {account}/{name}-MoPEQ where a token is set, else ./published/{name}-MoPEQ. A branch has no
    Space; what a repo compares with other budgets is kept on its branch. recipe: None is `best`; `Recipe()` is the
    paper's. questions: a file that fidelity is measured on; None takes the bundled set. fidelity_tokens: how many of
    its tokens, from the first question; 0 for all. calibration: questions for what the recipe tunes on, where it does.
    compare: measure uniform widths too; None does so for small models. benchmarks: what `benchmarks.benchmarks` makes
    of their names; both models answer them, and what cannot be run is said to be not run. dry_run: do everything but
    push. stream: let go of every shard of a Hub model once it is quantized and sent; None does so where the disk cannot
    hold it. again: even where the destination says that it holds this already. sign: `oidc` for the identity of the run
    that this is, or the file of a private key; None leaves it unsigned. engine: who measures and quantizes shards; one
    that works elsewhere always streams to the Hub. trust_remote_code: whether code that comes with the model may be
    run, and published with it, where transformers does not have its kind; of an opened Model that was said before.
    What a run that was stopped had finished is not done again. Raises MopeqError in one line on whatever goes wrong;
    the destination then holds what it held before.
    """
    recipe, given = with_given(recipe, calibration)
    progress = progress or Quiet()
    called = model if isinstance(model, str) else model.source.name
    destination = destination_for(to, called, private=private) if to is None or isinstance(to, str) else to
    signer = signer_named(sign)
    progress.say(f"publishing {called} to {destination.describe()}")
    if not dry_run:
        destination.check_writable(space=space)
    asked = read_questions(questions, fidelity_tokens)
    opened = open_model(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    asked = asked.askable(opened.takes_pictures)
    check_apart(destination.folder, opened)
    bound = bound_for(destination, engine, stream, dry_run=dry_run)
    recipe = settled_for(opened, recipe, asked, **bound)
    given = replace(given, questions=asked)
    name = manifests.publication_name(recipe, opened.source.commit)
    main, compared = destination, compared_at(destination)
    destination = place_of(main, compared, recipe.budget, name)
    if destination is not main:
        space = False
        if not dry_run:
            destination.check_writable(space=space)
    if is_there(destination, name, signer) and not again:
        same = unchanged(destination, name, opened.source.location, space=space, dry_run=dry_run)
        return replace(same, note=_note_on(same, asked, main, compared, benchmarks))
    note = None
    if compared and destination is main:
        note = _note_on_replacing(main, compared)
        progress.say(note)
    needs = checked_needs(opened, recipe, asked, **bound)
    with destination.workplace(name) as work:
        if needs.passing:
            sending = destination if isinstance(destination, HubDestination) and not dry_run else None
            send = sending.send if sending else None
            if sending and engine.elsewhere:
                sending.prepare()
            repo, fidelity = prove_on_the_way(opened, recipe, work, asked, progress, given, send, engine, benchmarks)
        else:
            repo = build(opened, recipe, None, work, progress, given, engine=engine)
            fidelity = prove(opened, repo, asked, compare, progress, benchmarks)
        _say_spread(repo, progress)
        card(repo.folder, destination, space=space)
        if dry_run:
            return Publication(name, destination.name, None, None, True, repo.manifest, fidelity, note)
        location = opened.source.location
        made = deliver(repo.folder, destination, signer, location, work, space=space, progress=progress)
    return replace(made, note=note)


def bound_for(destination: Destination, engine: Engine, stream: bool | None, *, dry_run: bool) -> dict[str, Any]:
    """What planning asks of where a publication goes: `place`, `to_hub` and `stream` of `planning.needs_for`."""
    to_hub = isinstance(destination, HubDestination)
    sent_elsewhere = engine.elsewhere and to_hub and not dry_run
    place = destination.folder or workplace.home()
    return {"place": place, "to_hub": to_hub, "stream": True if sent_elsewhere else stream}


def _note_on(
    there: Publication,
    asked: Questions,
    main: Destination,
    compared: Mapping[str, str],
    benchmarks: Benchmarks | None,
) -> str | None:
    """What whoever asks for a publication that is there already should know of it."""
    notes = []
    measured = (there.fidelity or {}).get("inputs", {})
    if asked.path and measured.get("sha256") != asked.digest:
        notes.append(
            f"its fidelity was measured on {measured.get('name')}; to measure on others, use evaluate and push"
        )
    if benchmarks:
        notes.append("no benchmarks were run; `quantize`, `evaluate`, `card` and `push` add them")
    if compared:
        notes.append(f"{main.name} compares it with others: {', '.join(compared)}")
    return "\n".join(notes) or None


def _note_on_replacing(main: Destination, compared: Mapping[str, str]) -> str:
    """What becomes of a main that compares several budgets, where a publication takes its place."""
    return (
        f"{main.name} compares {', '.join(compared)}; it will hold this publication alone, and they stay where they are"
    )


def quantize(
    model: str | Model,
    folder: str | Path,
    recipe: Recipe | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    calibration: str | Path | None = None,
    engine: Engine = LOCAL,
    *,
    trust_remote_code: bool = False,
) -> QuantizedRepo:
    """Quantize a model into `folder`, which must be empty or not exist.

    model: a folder, owner/name[@revision], or an opened Model. recipe: as in `publish`. profile: sensitivities of these
    very weights by the recipe's signal, measured before; None measures them. calibration: questions that the recipe
    tunes on; None for the bundled ones. engine, trust_remote_code: as in `publish`.
    Raises MopeqError on whatever is wrong with the source or the folder; nothing is left behind then.
    """
    progress, folder = progress or Quiet(), Path(folder)
    recipe, given = with_given(recipe, calibration)
    opened = open_model(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    if folder.is_file() or os.path.ismount(folder):
        raise MopeqError(f"{folder} is {'a file' if folder.is_file() else 'a mount point'}", "name a new folder")
    check_apart(folder, opened)
    recipe = settled_for(opened, recipe, read_questions(None), folder, to_hub=False, stream=False)
    name = manifests.publication_name(recipe, opened.source.commit)
    checked_needs(opened, recipe, None, folder, to_hub=False, stream=False)
    with workplace.kept(f"{folder.resolve()} {name} {__version__}", beside=folder.resolve()) as work:
        if folder.exists() and any(folder.iterdir()):
            return quantized_before(folder, name)
        repo = build(opened, recipe, profile, work, progress, given, engine=engine)
        _say_spread(repo, progress)
        if folder.exists():
            folder.rmdir()
        repo.folder.rename(folder)
    return QuantizedRepo(folder, repo.manifest)


def _say_spread(repo: QuantizedRepo, progress: Progress) -> None:
    """How well the signal told the experts apart, where they were to differ."""
    if "spread" in repo.manifest:
        progress.say(in_words(repo.manifest["spread"]))


def evaluate(
    folder: str | Path,
    questions: str | Path | None = None,
    *,
    original: str | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    compare: bool | None = None,
    benchmarks: Benchmarks | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a quantized folder against its original and leave fidelity.json in it.

    original: the source, where it is no longer at the place it was quantized from. fidelity_tokens, benchmarks,
    trust_remote_code: as in `publish`; without benchmarks those that are known of these weights stay.
    """
    progress, folder = progress or Quiet(), Path(folder)
    asked = read_questions(questions, fidelity_tokens)
    manifest = manifests.read_manifest(folder)
    original = original or location_of(folder, manifest)
    if original is None:
        raise MopeqError(f"{folder} does not say where its original is", "name it with --original")
    opened = open_model(original, trust_remote_code=trust_remote_code)
    if opened.source.commit != manifest["source"]["commit"]:
        raise MopeqError(
            f"{opened.source.location} is not what {folder} was made from: its contents have changed",
            "quantize it again, or name the original with --original",
        )
    if opened.code and (changed := differing(folder, opened.code.files)):
        raise MopeqError(f"{changed} in {folder} is not the source's", "quantize it again")
    asked = asked.askable(opened.takes_pictures)
    return prove(opened, QuantizedRepo(folder, manifest), asked, compare, progress, benchmarks)


def push(
    folder: str | Path,
    to: str,
    *,
    space: bool = True,
    private: bool = False,
    dry_run: bool = False,
    sign: str | None = None,
    progress: Progress | None = None,
) -> Publication:
    """Publish a folder that was quantized, evaluated and given a card; it stays as it is. sign: as in `publish`.

    Where the publication is there already, what was measured or written since is brought to it. Raises MopeqError where
    the folder was not evaluated, or has no card.
    """
    progress, folder = progress or Quiet(), Path(folder)
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    if not manifests.holds_its_files(folder, manifest):
        raise MopeqError(f"the files in {folder} are not those its mopeq.json describes", "quantize again")
    if fidelity is None or fidelity["weights_digest"] != manifests.weights_digest(manifest):
        raise MopeqError(f"{folder} was not measured as it is now", "run `mopeq-hub evaluate` on it first")
    if not (folder / "README.md").is_file():
        raise MopeqError(f"{folder} has no card", "run `mopeq-hub card` on it first")
    destination = destination_for(to, manifest["source"]["name"], private=private)
    signer = signer_named(sign)
    if destination.folder == folder.resolve():
        raise MopeqError(f"{to} is the folder that is to be pushed", "name another destination")
    name = manifest["publication"]
    if not dry_run:
        destination.check_writable(space=space)
    with workplace.scratch() as work:
        again = write_card(staged(folder, manifest, work / "again"), None, space)
        unedited = again.read_bytes() == (folder / "README.md").read_bytes()
        if not unedited and _is_unmeasured(folder, again, space):
            raise MopeqError(f"the card of {folder} was written before it was measured", "run `mopeq-hub card` on it")
        edited_card = None if unedited else folder / "README.md"
        if is_there(destination, name, signer) and says_the_same(destination, fidelity, edited_card):
            return unchanged(destination, name, location_of(folder, manifest), space=space, dry_run=dry_run)
        note, compared = None, compared_at(destination)
        if compared:
            note = _note_on_replacing(destination, compared)
            progress.say(note)
        if dry_run:
            return Publication(name, destination.name, None, None, True, manifest, fidelity, note)
        ready = staged(folder, manifest, work / "repo")
        manifest = completed(ready, destination, signer, space=space, card_too=unedited)
        commit = destination.commit(ready, name, progress, consume=False)
        space_commit = publish_space_of(destination, manifest, location_of(folder, manifest), work) if space else None
    return Publication(name, destination.name, commit, space_commit, True, manifest, fidelity, note)


def publish_space(to: str, *, private: bool = False) -> str | None:
    """Create or update the Space of a publication; None where it was up to date."""
    destination = destination_for(to, to, private=private)
    if destination.branch:
        raise UsageError(f"{to} is a branch, and a Space is of main", "name the repo alone")
    manifest = published_manifest(destination)
    destination.check_writable(space=True)
    with workplace.scratch() as work:
        return publish_space_of(destination, manifest, None, work)


def run_space(to: str, port: int | None = None, *, trust_remote_code: bool = False) -> None:
    """Open the Space of a publication on this machine and stay until it is stopped.

    trust_remote_code: whether code of its source's that it brings may be run. Raises MopeqError where it brings some
    and that was not said.
    """
    destination = destination_for(to, to)
    manifest = published_manifest(destination)
    if manifests.remote_files(manifest) and not trust_remote_code:
        raise MopeqError(f"the model of {to} is made by code that it brings", f"read it, and add {TRUST} if it may run")
    folder = destination.space_folder()
    if folder is not None:
        run_local(folder, port)
        return
    source = manifest["source"]
    original = source["name"] if source["kind"] == "hub" else None
    with workplace.scratch() as work:
        render_space(work / "space", manifest, str(destination.local_copy().resolve()), original, None)
        run_local(work / "space", port)


def check_apart(folder: Path | None, model: Model) -> None:
    """Raises MopeqError where something would be written into the source, or the source would be replaced."""
    if folder is None or model.source.kind == "hub":
        return
    source, target = Path(model.source.location), folder.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise MopeqError(f"{folder} and the source {source} lie within each other", "choose another folder")


def _is_unmeasured(folder: Path, again: Path, space: bool) -> bool:
    """Whether the folder's card is the one that a folder without fidelity.json gets; `again` is a card beside one."""
    (again.parent / manifests.FIDELITY_NAME).unlink()
    return write_card(again.parent, None, space).read_bytes() == (folder / "README.md").read_bytes()
