"""The straight line from a model's name to a publication; each stage also alone, from the files that the one before
left."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import workplace
from mopeq_hub.allocation import allocate
from mopeq_hub.bitmap import BitMap
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.cost import Cost, estimate
from mopeq_hub.fidelity.measure import Way, way_of
from mopeq_hub.fidelity.measure import measure as measure_fidelity
from mopeq_hub.fidelity.questions import DEFAULT_TOKENS, Questions, read_questions
from mopeq_hub.hub import Destination, destination_for
from mopeq_hub.model import Model, open_model
from mopeq_hub.needs import Needs, check_fits, needs_of
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.quantization.calibrated import calibrated, check_memory
from mopeq_hub.quantization.stream import output_shards, plan_units
from mopeq_hub.recipe import CALIBRATED, Recipe
from mopeq_hub.repo import QuantizedRepo, check_usable, fill, location_of
from mopeq_hub.report import card as cards
from mopeq_hub.report import plots
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.run import measure
from mopeq_hub.source import HubSource
from mopeq_hub.space import render_space, run_local
from mopeq_hub.version import __version__

COMPARED_BYTES = 1_000_000_000
"""Up to this size of the source, uniform widths are measured beside the bit map unless the user says otherwise."""


@dataclass(frozen=True)
class Plan:
    """What a publication would be. `choices` are dicts of name, bytes and experts_bpw; `manifest` needs a profile;
    `fidelity` is what measuring it block by block would cost."""

    choices: list[dict[str, Any]]
    manifest: dict[str, Any] | None
    profile: Profile | None
    fidelity: Cost


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
    progress: Progress | None = None,
) -> Publication:
    """Quantize a model expert by expert, prove the result, and publish it with its card and its Space.

    model: a folder, or owner/name[@revision] on the Hub. to: a Hub repo owner/name or a folder; None chooses
    {account}/{name}-MoPEQ where a token is set, else ./published/{name}-MoPEQ. questions: a file that fidelity is
    measured on; None takes the bundled set. fidelity_tokens: how many of its tokens, from the first question; 0 for
    all. calibration: questions for what the recipe tunes on, where it does. compare: measure uniform widths too; None
    does so for small models. dry_run: do everything but push. stream: let go of every shard of a Hub model once it is
    quantized and sent; None does so where the disk cannot hold it.
    What a run that was stopped had finished is not done again. Raises MopeqError in one line on whatever goes wrong;
    the destination then holds what it held before.
    """
    calibration_path = Path(calibration) if calibration else None
    recipe, progress = calibrated(recipe or Recipe(), calibration_path), progress or Quiet()
    destination = destination_for(to, model, private=private)
    progress.say(f"publishing {model} to {destination.describe()}")
    if not dry_run:
        destination.check_writable(space=space)
    asked = read_questions(questions, fidelity_tokens)
    opened = open_model(model)
    _check_apart(destination.folder, opened)
    name = manifests.publication_name(recipe, opened.source.commit)
    if destination.publication() == name:
        same = _unchanged(destination, name, opened.source.location, space=space, dry_run=dry_run)
        measured = (same.fidelity or {}).get("inputs", {})
        if asked.path and measured.get("sha256") != asked.digest:
            note = f"its fidelity was measured on {measured.get('name')}; to measure on others, use evaluate and push"
            return replace(same, note=note)
        return same
    place = destination.folder or workplace.home()
    needs = _check_needs(opened, recipe, place, to_hub=destination.repo_id is not None, stream=stream)
    with destination.workplace(name) as work:
        repo = _build(opened, recipe, None, work, progress, needs, calibration_path)
        fidelity = _evaluate(opened, repo, asked, compare, progress)
        card(repo.folder, destination, space=space)
        if dry_run:
            return Publication(name, destination.name, None, None, True, repo.manifest, fidelity)
        commit = destination.commit(repo.folder, name, progress, consume=True)
        space_commit = _publish_space(destination, repo.manifest, opened.source.location, work) if space else None
    return Publication(name, destination.name, commit, space_commit, True, repo.manifest, fidelity)


def plan(
    model: str,
    recipe: Recipe | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    *,
    calibration: str | Path | None = None,
    questions: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
) -> Plan:
    """What `quantize` would do. A folder's experts are measured; a Hub model's only if `profile` is not given but
    cached.

    Without a profile there is no bit map, only the sizes that uniform widths would give; nothing but headers is fetched
    then.
    """
    recipe, progress = calibrated(recipe or Recipe(), Path(calibration) if calibration else None), progress or Quiet()
    asked = read_questions(questions, fidelity_tokens)
    opened = open_model(model)
    if profile is not None:
        profile = _checked(profile, opened, recipe)
    elif opened.source.kind == "folder" or _profile_cache(opened, recipe).is_file():
        profile = profile_of(opened, recipe, progress)
    measures = {}
    for bits in recipe.bits:
        uniform = BitMap.uniform(opened.layout, bits)
        measures[f"uniform {bits} bits"] = manifests.sizes(opened, recipe, uniform, _shards(opened, uniform, recipe))
    manifest = None
    if profile is not None:
        bitmap = allocate(profile, recipe)
        manifest = manifests.build(opened, recipe, profile, bitmap, _shards(opened, bitmap, recipe), {})
        measures["this recipe"] = manifest["sizes"]
    choices = [
        {"name": name, "bytes": sizes["published_bytes"], "experts_bpw": sizes["experts_bpw"]}
        for name, sizes in measures.items()
    ]
    original = {"name": "original", "bytes": opened.checkpoint.nbytes, "experts_bpw": None}
    return Plan([original, *choices], manifest, profile, estimate(opened, asked))


def quantize(
    model: str | Model,
    folder: str | Path,
    recipe: Recipe | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    calibration: str | Path | None = None,
) -> QuantizedRepo:
    """Quantize a model into `folder`, which must be empty or not exist.

    model: a folder, owner/name[@revision], or an opened Model. profile: sensitivities of these very weights by the
    recipe's signal, measured before; None measures them. calibration: questions that the recipe tunes on; None for the
    bundled ones.
    Raises MopeqError on whatever is wrong with the source or the folder; nothing is left behind then.
    """
    progress, folder = progress or Quiet(), Path(folder)
    calibration = Path(calibration) if calibration else None
    recipe = calibrated(recipe or Recipe(), calibration)
    opened = open_model(model) if isinstance(model, str) else model
    if folder.is_file() or os.path.ismount(folder):
        raise MopeqError(f"{folder} is {'a file' if folder.is_file() else 'a mount point'}", "name a new folder")
    _check_apart(folder, opened)
    name = manifests.publication_name(recipe, opened.source.commit)
    needs = _check_needs(opened, recipe, folder, to_hub=False, stream=False)
    with workplace.kept(f"{folder.resolve()} {name} {__version__}", beside=folder.resolve()) as work:
        if folder.exists() and any(folder.iterdir()):
            return _quantized_before(folder, name)
        repo = _build(opened, recipe, profile, work, progress, needs, calibration)
        if folder.exists():
            folder.rmdir()
        repo.folder.rename(folder)
    return QuantizedRepo(folder, repo.manifest)


def _quantized_before(folder: Path, name: str) -> QuantizedRepo:
    """What is in the folder, if it is just this publication, as it was quantized: a run that ended before it could say
    so leaves that."""
    repo = (
        QuantizedRepo(folder, manifests.read_manifest(folder)) if (folder / manifests.MANIFEST_NAME).is_file() else None
    )
    if repo is None or repo.manifest["publication"] != name or not manifests.holds_its_files(folder, repo.manifest):
        raise MopeqError(f"{folder} is not empty", "name a new folder, or empty it first")
    return repo


def profile_of(model: Model, recipe: Recipe, progress: Progress) -> Profile:
    """The profile the recipe asks for, measured now or, for the same weights and signal, before."""
    cached = _profile_cache(model, recipe)
    if cached.is_file():
        return Profile.read(cached)
    profile = measure(model, recipe, cached.with_suffix(".partial"), progress)
    profile.write(cached)
    return profile


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
    return _evaluate(opened, QuantizedRepo(folder, manifest), asked, compare, progress)


def card(folder: str | Path, destination: Destination | None = None, *, space: bool = True) -> Path:
    """Write README.md and plots of a quantized folder; `destination` is where the card says it can be found."""
    folder = Path(folder)
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    plots.draw(manifest, fidelity, folder)
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
    progress: Progress | None = None,
) -> Publication:
    """Publish a folder that was quantized, evaluated and given a card. Raises MopeqError where one of these is
    missing."""
    progress, folder = progress or Quiet(), Path(folder)
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    if not manifests.holds_its_files(folder, manifest):
        raise MopeqError(f"the files in {folder} are not those its mopeq.json describes", "quantize again")
    if fidelity is None or fidelity["weights_digest"] != manifests.weights_digest(manifest):
        raise MopeqError(f"{folder} was not measured as it is now", "run `mopeq-hub evaluate` on it first")
    if not (folder / "README.md").is_file():
        raise MopeqError(f"{folder} has no card", "run `mopeq-hub card` on it first")
    destination = destination_for(to, manifest["source"]["name"], private=private)
    if destination.folder == folder.resolve():
        raise MopeqError(f"{to} is the folder that is to be pushed", "name another destination")
    name = manifest["publication"]
    if not dry_run:
        destination.check_writable(space=space)
    if destination.publication() == name:
        return _unchanged(destination, name, location_of(folder, manifest), space=space, dry_run=dry_run)
    if dry_run:
        return Publication(name, destination.name, None, None, True, manifest, fidelity)
    _readdress(folder, destination, space)
    commit = destination.commit(folder, name, progress, consume=False)
    with workplace.scratch() as work:
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


def _check_needs(model: Model, recipe: Recipe, place: Path, *, to_hub: bool, stream: bool | None) -> Needs:
    """What the run will need. Raises MopeqError where the machine has less."""
    widest = BitMap.uniform(model.layout, max(recipe.bits))
    units = plan_units(model.checkpoint, model.layout, widest, recipe)
    profiled = _profile_cache(model, recipe).is_file()
    needs = needs_of(model, units, place, to_hub=to_hub, profiled=profiled, passing=stream)
    check_fits(needs, place)
    return needs


def _build(
    model: Model,
    recipe: Recipe,
    profile: Profile | None,
    work: Path,
    progress: Progress,
    needs: Needs,
    calibration: Path | None,
) -> QuantizedRepo:
    """The quantized folder `work`/repo, made or gone on with."""
    if needs.passing and isinstance(model.source, HubSource):
        model.source.pass_through(work / "source")
    check_usable(model)
    check_memory(model, recipe)
    profile = _checked(profile, model, recipe) if profile else profile_of(model, recipe, progress)
    manifest = fill(model, recipe, profile, allocate(profile, recipe), work, progress, calibration)
    return QuantizedRepo(work / "repo", manifest)


def _check_apart(folder: Path | None, model: Model) -> None:
    """Raises MopeqError where something would be written into the source, or the source would be replaced."""
    if folder is None or model.source.kind == "hub":
        return
    source, target = Path(model.source.location), folder.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise MopeqError(f"{folder} and the source {source} lie within each other", "choose another folder")


def _checked(profile: Profile, model: Model, recipe: Recipe) -> Profile:
    """The profile, if it is of these weights, by the recipe's signal, and of every expert."""
    signal = {"name": recipe.signal, "estimator": recipe.estimator}
    if profile.source_commit != model.source.commit:
        raise MopeqError(
            f"the profile is of {profile.source_commit[:12] or 'unknown weights'}, {model.source.name} is at "
            f"{model.source.commit[:12]}",
            "measure again, without --profile",
        )
    if {**profile.signal, **signal} != profile.signal or set(profile.sensitivities) != set(model.layout.experts):
        raise MopeqError("the profile is by another signal, or of other experts", "measure again, without --profile")
    return profile


def _evaluate(
    model: Model, repo: QuantizedRepo, questions: Questions, compare: bool | None, progress: Progress
) -> dict[str, Any]:
    way = way_of(model, workplace.free_memory())
    fidelity = measure_fidelity(model, repo.folder, repo.manifest, questions, way, progress)
    if compare if compare is not None else model.checkpoint.nbytes <= COMPARED_BYTES:
        fidelity["comparisons"] = _comparisons(model, repo.manifest, questions, way, progress)
    manifests.write_json(repo.folder / manifests.FIDELITY_NAME, fidelity, "fidelity")
    return fidelity


def _comparisons(
    model: Model, manifest: dict[str, Any], questions: Questions, way: Way, progress: Progress
) -> list[dict[str, Any]]:
    """Uniform widths of the same recipe, quantized and measured in the same way; without the calibration data, which
    a quantized folder does not keep: then they are searched, and so is the recipe's own bit map beside them."""
    recipe = Recipe.from_dict(manifest["recipe"])
    others: dict[str, Recipe] = {}
    if recipe.quantizer in CALIBRATED:
        recipe = replace(recipe, quantizer="search")
        others["these widths, not calibrated"] = recipe
    if len(recipe.bits) > 1:
        others |= {f"uniform {bits} bits": replace(recipe, bits=(bits,)) for bits in recipe.bits}
    found = []
    for name, other in others.items():
        with workplace.scratch() as work:
            repo = quantize(model, work / "repo", other, progress=progress)
            fidelity = measure_fidelity(model, repo.folder, repo.manifest, questions, way, progress)
        found.append(
            {
                "name": name,
                "bytes": repo.manifest["sizes"]["published_bytes"],
                "experts_bpw": repo.manifest["sizes"]["experts_bpw"],
                "kl": fidelity["kl"],
                "top1_agreement": fidelity["top1_agreement"],
                "perplexity_ratio": fidelity["perplexity"]["ratio"],
                "accuracy": fidelity["accuracy"] and fidelity["accuracy"]["published"],
            }
        )
    return found


def _readdress(folder: Path, destination: Destination, space: bool) -> None:
    """Let a card that nobody edited since `card` wrote it for no destination say where it is going."""
    with workplace.scratch() as work:
        for name in (manifests.MANIFEST_NAME, manifests.FIDELITY_NAME):
            shutil.copyfile(folder / name, work / name)
        if card(work).read_bytes() == (folder / "README.md").read_bytes():
            card(folder, destination, space=space)


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


def _shards(model: Model, bitmap: BitMap, recipe: Recipe) -> list[Any]:
    return output_shards(plan_units(model.checkpoint, model.layout, bitmap, recipe))


def _profile_cache(model: Model, recipe: Recipe) -> Path:
    settings = [recipe.signal, recipe.estimator]
    if recipe.estimator == "hutchinson":
        settings += [str(recipe.probes), str(recipe.seed)]
    return workplace.cache("profiles") / f"{model.source.commit[:16]}-{'-'.join(settings)}.json"
