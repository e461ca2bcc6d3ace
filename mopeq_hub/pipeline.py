"""The straight line from a model's name to a publication; each stage also alone, from the files that the one before
left."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import provenance, workplace
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.hub import Destination, HubDestination, destination_for
from mopeq_hub.hub.contents import staged
from mopeq_hub.model import Model, open_model
from mopeq_hub.needs import check_fits
from mopeq_hub.planning import Plan, needs_for, plan, settled_for, with_given
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.proof import prove, prove_on_the_way
from mopeq_hub.quantization.calibrated import check_memory
from mopeq_hub.questions import DEFAULT_TOKENS, read_questions
from mopeq_hub.recipe import Recipe
from mopeq_hub.repo import QuantizedRepo, build, location_of, quantized_before
from mopeq_hub.report import card as cards
from mopeq_hub.report import plots
from mopeq_hub.sensitivity import Profile
from mopeq_hub.signing import Signer, signer_for
from mopeq_hub.space import render_space, run_local
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


@dataclass(frozen=True)
class Publication:
    """What went where. `commit` and `space_commit` are None where nothing had to change, or nothing was to be
    pushed."""

    name: str
    destination: str
    commit: str | None
    space_commit: str | None
    changed: bool
    manifest: dict[str, Any]
    fidelity: dict[str, Any] | None
    note: str | None = None


def publish(
    model: str,
    to: str | None = None,
    recipe: Recipe | None = None,
    *,
    questions: str | Path | None = None,
    calibration: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    compare: bool | None = None,
    space: bool = True,
    private: bool = False,
    dry_run: bool = False,
    stream: bool | None = None,
    again: bool = False,
    sign: str | None = None,
    engine: Engine = LOCAL,
    progress: Progress | None = None,
) -> Publication:
    """Quantize a model expert by expert, prove the result, and publish it with its card and its Space.

    model: a folder, or owner/name[@revision] on the Hub. to: a Hub repo owner/name or a folder; None chooses
    {account}/{name}-MoPEQ where a token is set, else ./published/{name}-MoPEQ. questions: a file that fidelity is
    measured on; None takes the bundled set. fidelity_tokens: how many of its tokens, from the first question; 0 for
    all. calibration: questions for what the recipe tunes on, where it does. compare: measure uniform widths too; None
    does so for small models. dry_run: do everything but push. stream: let go of every shard of a Hub model once it is
    quantized and sent; None does so where the disk cannot hold it. again: even where the destination says that it holds
    this already. sign: `oidc` for the identity of the run that this is, or the file of a private key; None leaves it
    unsigned. engine: who measures and quantizes shards; one that works elsewhere always streams to the Hub.
    What a run that was stopped had finished is not done again. Raises MopeqError in one line on whatever goes wrong;
    the destination then holds what it held before.
    """
    recipe, given = with_given(recipe, calibration)
    progress = progress or Quiet()
    destination, signer = destination_for(to, model, private=private), _signer(sign)
    progress.say(f"publishing {model} to {destination.describe()}")
    if not dry_run:
        destination.check_writable(space=space)
    asked = read_questions(questions, fidelity_tokens)
    opened = open_model(model)
    _check_apart(destination.folder, opened)
    to_hub, place = isinstance(destination, HubDestination), destination.folder or workplace.home()
    sending = destination if isinstance(destination, HubDestination) and not dry_run else None
    if engine.elsewhere and sending:
        stream = True
    recipe = settled_for(opened, recipe, asked, place, to_hub=to_hub, stream=stream)
    given = replace(given, questions=asked)
    name = manifests.publication_name(recipe, opened.source.commit)
    if _is_there(destination, name, signer) and not again:
        same = _unchanged(destination, name, opened.source.location, space=space, dry_run=dry_run)
        measured = (same.fidelity or {}).get("inputs", {})
        if asked.path and measured.get("sha256") != asked.digest:
            note = f"its fidelity was measured on {measured.get('name')}; to measure on others, use evaluate and push"
            return replace(same, note=note)
        return same
    check_memory(opened, recipe)
    needs = needs_for(opened, recipe, asked, place, to_hub=to_hub, stream=stream)
    check_fits(needs, place)
    with destination.workplace(name) as work:
        if needs.passing:
            send = sending.send if sending else None
            if sending and engine.elsewhere:
                sending.prepare()
            repo, fidelity = prove_on_the_way(opened, recipe, work, asked, progress, given, send, engine)
        else:
            repo = build(opened, recipe, None, work, progress, given, engine=engine)
            fidelity = prove(opened, repo, asked, compare, progress)
        card(repo.folder, destination, space=space)
        if dry_run:
            return Publication(name, destination.name, None, None, True, repo.manifest, fidelity)
        manifest = _completed(repo.folder, destination, signer, space=space)
        sent = {file: told for file, told in manifest["files"].items() if not (repo.folder / file).exists()}
        commit = destination.commit(repo.folder, name, progress, consume=True, sent=sent)
        space_commit = _publish_space(destination, manifest, opened.source.location, work) if space else None
    return Publication(name, destination.name, commit, space_commit, True, manifest, fidelity)


def quantize(
    model: str | Model,
    folder: str | Path,
    recipe: Recipe | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    calibration: str | Path | None = None,
    engine: Engine = LOCAL,
) -> QuantizedRepo:
    """Quantize a model into `folder`, which must be empty or not exist.

    model: a folder, owner/name[@revision], or an opened Model. profile: sensitivities of these very weights by the
    recipe's signal, measured before; None measures them. calibration: questions that the recipe tunes on; None for the
    bundled ones. engine: as in `publish`.
    Raises MopeqError on whatever is wrong with the source or the folder; nothing is left behind then.
    """
    progress, folder = progress or Quiet(), Path(folder)
    recipe, given = with_given(recipe, calibration)
    opened = open_model(model) if isinstance(model, str) else model
    if folder.is_file() or os.path.ismount(folder):
        raise MopeqError(f"{folder} is {'a file' if folder.is_file() else 'a mount point'}", "name a new folder")
    _check_apart(folder, opened)
    recipe = settled_for(opened, recipe, read_questions(None), folder, to_hub=False, stream=False)
    name = manifests.publication_name(recipe, opened.source.commit)
    check_memory(opened, recipe)
    check_fits(needs_for(opened, recipe, None, folder, to_hub=False, stream=False), folder)
    with workplace.kept(f"{folder.resolve()} {name} {__version__}", beside=folder.resolve()) as work:
        if folder.exists() and any(folder.iterdir()):
            return quantized_before(folder, name)
        repo = build(opened, recipe, profile, work, progress, given, engine=engine)
        if folder.exists():
            folder.rmdir()
        repo.folder.rename(folder)
    return QuantizedRepo(folder, repo.manifest)


def evaluate(
    folder: str | Path,
    questions: str | Path | None = None,
    *,
    original: str | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    compare: bool | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a quantized folder against its original and leave fidelity.json in it.

    original: the source, where it is no longer at the place it was quantized from. fidelity_tokens: as in `publish`.
    """
    progress, folder = progress or Quiet(), Path(folder)
    asked = read_questions(questions, fidelity_tokens)
    manifest = manifests.read_manifest(folder)
    original = original or location_of(folder, manifest)
    if original is None:
        raise MopeqError(f"{folder} does not say where its original is", "name it with --original")
    opened = open_model(original)
    if opened.source.commit != manifest["source"]["commit"]:
        raise MopeqError(
            f"{opened.source.location} is not what {folder} was made from: its contents have changed",
            "quantize it again, or name the original with --original",
        )
    return prove(opened, QuantizedRepo(folder, manifest), asked, compare, progress)


def card(folder: str | Path, destination: Destination | None = None, *, space: bool = True) -> Path:
    """Write README.md and plots of a quantized folder; `destination` is where the card says it can be found."""
    folder = Path(folder)
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    plots.draw(manifest, fidelity, folder)
    return _write_card(folder, destination, space)


def _write_card(folder: Path, destination: Destination | None, space: bool) -> Path:
    """The card alone, with the plots that are there."""
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    repo_id = destination.repo_id if destination else None
    space_id = destination.repo_id if destination and space else None
    cards.write_card(folder, manifest, fidelity, manifest["source"]["card"], repo_id, space_id)
    return folder / "README.md"


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

    Raises MopeqError where one of these is missing.
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
    signer = _signer(sign)
    if destination.folder == folder.resolve():
        raise MopeqError(f"{to} is the folder that is to be pushed", "name another destination")
    name = manifest["publication"]
    if not dry_run:
        destination.check_writable(space=space)
    if _is_there(destination, name, signer):
        return _unchanged(destination, name, location_of(folder, manifest), space=space, dry_run=dry_run)
    if dry_run:
        return Publication(name, destination.name, None, None, True, manifest, fidelity)
    with workplace.scratch() as work:
        again = _write_card(staged(folder, manifest, work / "again"), None, space)
        unedited = again.read_bytes() == (folder / "README.md").read_bytes()
        if not unedited and _is_unmeasured(folder, again, space):
            raise MopeqError(f"the card of {folder} was written before it was measured", "run `mopeq-hub card` on it")
        ready = staged(folder, manifest, work / "repo")
        manifest = _completed(ready, destination, signer, space=space, card_too=unedited)
        commit = destination.commit(ready, name, progress, consume=False)
        space_commit = _publish_space(destination, manifest, location_of(folder, manifest), work) if space else None
    return Publication(name, destination.name, commit, space_commit, True, manifest, fidelity)


def publish_space(to: str, *, private: bool = False) -> str | None:
    """Create or update the Space of a publication; None where it was up to date."""
    destination = destination_for(to, to, private=private)
    manifest = _published_manifest(destination)
    destination.check_writable(space=True)
    with workplace.scratch() as work:
        return _publish_space(destination, manifest, None, work)


def run_space(to: str, port: int | None = None) -> None:
    """Open the Space of a publication on this machine and stay until it is stopped."""
    destination = destination_for(to, to)
    manifest = _published_manifest(destination)
    folder = destination.space_folder()
    if folder is not None:
        run_local(folder, port)
        return
    source = manifest["source"]
    original = source["name"] if source["kind"] == "hub" else None
    with workplace.scratch() as work:
        render_space(work / "space", manifest, str(destination.local_copy().resolve()), original, None)
        run_local(work / "space", port)


def _check_apart(folder: Path | None, model: Model) -> None:
    """Raises MopeqError where something would be written into the source, or the source would be replaced."""
    if folder is None or model.source.kind == "hub":
        return
    source, target = Path(model.source.location), folder.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise MopeqError(f"{folder} and the source {source} lie within each other", "choose another folder")


def _is_unmeasured(folder: Path, again: Path, space: bool) -> bool:
    """Whether the folder's card is the one that a folder without fidelity.json gets; `again` is a card beside one."""
    (again.parent / manifests.FIDELITY_NAME).unlink()
    return _write_card(again.parent, None, space).read_bytes() == (folder / "README.md").read_bytes()


def _signer(sign: str | None) -> Signer | None:
    """Who signs. Raises MopeqError where that is nobody, or the time is none, before the work instead of after it."""
    provenance.moment()
    return signer_for(sign) if sign else None


def _is_there(destination: Destination, name: str, signer: Signer | None) -> bool:
    """Whether the destination holds just this publication, and a signature if there is to be one.

    What is there unsigned is made again: nobody signs what somebody else may have put there.
    """
    if destination.publication() != name:
        return False
    return signer is None or manifests.SIGNATURE_NAME in destination.look().names


def _completed(
    folder: Path, destination: Destination, signer: Signer | None, *, space: bool, card_too: bool = True
) -> dict[str, Any]:
    """Give a folder what it gets on its way to a destination: provenance, a card that says where it is, a signature.

    card_too: not where the card was edited by hand. Returns the manifest that is published.
    """
    manifest = provenance.record(folder, destination.account)
    if card_too:
        _write_card(folder, destination, space)
    if signer:
        signer.sign(folder, manifest)
    return manifest


def _publish_space(destination: Destination, manifest: dict[str, Any], location: str | None, work: Path) -> str | None:
    """Render the Space of what `destination` holds and commit it; None where it was up to date.

    location: of the original, for a destination from where a folder on this machine can be reached.
    """
    source = manifest["source"]
    original = source["name"] if source["kind"] == "hub" else destination.path_for_space(location)
    render_space(work / "space", manifest, destination.model_for_space(), original, source["card"].get("license"))
    return destination.commit_space(work / "space", manifest["publication"])


def _unchanged(destination: Destination, name: str, location: str | None, *, space: bool, dry_run: bool) -> Publication:
    """The model is published already; tag and Space are made up for if an earlier run did not come to them."""
    manifest = _published_manifest(destination)
    space_commit = None
    if not dry_run:
        destination.tag(name)
        if space:
            with workplace.scratch() as work:
                space_commit = _publish_space(destination, manifest, location, work)
    fidelity = json.loads(destination.read_text(manifests.FIDELITY_NAME))
    return Publication(name, destination.name, None, space_commit, space_commit is not None, manifest, fidelity)


def _published_manifest(destination: Destination) -> dict[str, Any]:
    with workplace.scratch() as work:
        (work / manifests.MANIFEST_NAME).write_text(destination.read_text(manifests.MANIFEST_NAME), "utf-8")
        return manifests.read_manifest(work)
