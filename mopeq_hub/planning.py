"""What a publication would be and what it would take, before anything is quantized."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import profiles, selection, workplace
from mopeq_hub.allocation import allocate
from mopeq_hub.bitmap import BitMap
from mopeq_hub.budget import room_for
from mopeq_hub.fidelity.cost import Cost, estimate
from mopeq_hub.fidelity.measure import check_blocks, way_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.needs import PROGRAM_BYTES, Needs, check_fits, needs_of
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.quantization.calibrated import calibrated, check_memory
from mopeq_hub.questions import DEFAULT_TOKENS, Questions, read_questions
from mopeq_hub.recipe import BEST, CALIBRATED, MEASURED, RUNNING, Recipe
from mopeq_hub.recipes import best
from mopeq_hub.rehearsal import rehearse
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.by_layer import check_routing
from mopeq_hub.sensitivity.by_running import memory_needed, memory_of
from mopeq_hub.sensitivity.given import Given
from mopeq_hub.sensitivity.initial import pinned
from mopeq_hub.sizes import output_bytes, sizes


@dataclass(frozen=True)
class Plan:
    """What a publication would be. `recipe` is the one that `best` stands for here, where that was asked for; `choices`
    are dicts of name, bytes and experts_bpw; `manifest` needs a profile; `fidelity` is what measuring it block by block
    would cost, None where it is measured as a whole only, `needs` what publishing it to the Hub would take."""

    recipe: Recipe
    choices: list[dict[str, Any]]
    manifest: dict[str, Any] | None
    profile: Profile | None
    fidelity: Cost | None
    needs: Needs


def plan(
    model: str | Model,
    recipe: Recipe | None = None,
    profile: Profile | None = None,
    progress: Progress | None = None,
    *,
    calibration: str | Path | None = None,
    questions: str | Path | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    trust_remote_code: bool = False,
) -> Plan:
    """What `quantize` would do. A folder's experts are measured, where that does not take running the model and their
    weights are there; others only if `profile` is given or cached. Where maps are to be tried, the bit map is the one
    before that.

    Without a profile there is no bit map, only the sizes that uniform widths would give; nothing but headers is fetched
    then. trust_remote_code: as in `publish`.
    """
    recipe, given = with_given(recipe, calibration)
    progress = progress or Quiet()
    asked = read_questions(questions, fidelity_tokens)
    opened = open_model(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    asked = asked.askable(opened.takes_pictures)
    rehearse(opened, recipe, progress)
    if opened.parts:
        progress.say(opened.parts)
    recipe = settled_for(opened, recipe, asked, workplace.home(), to_hub=True, stream=None)
    measures = {}
    for bits in recipe.bits:
        uniform, alike = BitMap.uniform(opened.layout, bits), recipe.uniform(bits)
        measures[f"uniform {bits} bits"] = sizes(opened, alike, uniform)
    if profile is not None:
        profile = profiles.checked(profile, opened, recipe)
    elif _looked_at(opened, recipe, progress) or profiles.is_kept(opened, recipe):
        profile = profiles.profile_of(opened, recipe, progress, given=given)
    manifest = None
    if profile is not None:
        bitmap = allocate(profile, recipe, room_for(opened, recipe))
        manifest = manifests.build(opened, recipe, profile, bitmap, {})
        measures["this recipe"] = manifest["sizes"]
    choices = [
        {"name": name, "bytes": taken["published_bytes"], "experts_bpw": taken["experts_bpw"]}
        for name, taken in measures.items()
    ]
    original = {"name": "original", "bytes": opened.checkpoint.nbytes, "experts_bpw": None}
    needs = needs_for(opened, recipe, asked, workplace.home(), to_hub=True, stream=None)
    cost = None if opened.undivided else estimate(opened, asked)
    return Plan(recipe, [original, *choices], manifest, profile, cost, needs)


def settled_for(
    model: Model, recipe: Recipe, questions: Questions, place: Path, *, to_hub: bool, stream: bool | None
) -> Recipe:
    """The recipe with what `best` stands for on this machine, and the questions that maps are tried on named.

    place, to_hub, stream: as in `needs_for`. Raises MopeqError where its budget cannot be met.
    """
    room_for(model, recipe)
    whole = True
    # Where the rest competes, only a model that is run, and so is here as a whole, can tell.
    if recipe.signal == BEST and recipe.rest_bits != "auto":
        streamed = selection.settled(recipe, model, questions, whole=False)
        whole = not needs_for(model, streamed, questions, place, to_hub=to_hub, stream=stream).passing
    return selection.settled(recipe, model, questions, whole=whole)


def _looked_at(model: Model, recipe: Recipe, progress: Progress) -> bool:
    """Whether a plan measures the experts: where they are here, and need not be run."""
    if model.source.kind != "folder" or recipe.signal in RUNNING:
        return False
    if absent := model.absent:
        progress.say(
            f"{model.source.name} has headers without weights ({absent} is empty), so there is no bit map, only sizes"
        )
    return not absent


def with_given(recipe: Recipe | None, calibration: str | Path | None) -> tuple[Recipe, Given]:
    """The recipe (None: `best`) with digest and commit of all that is given beside the model, and where that is.

    Raises UsageError where something is given that the recipe has no use for, MopeqError where it cannot be had.
    """
    path = Path(calibration) if calibration else None
    chosen, initial = pinned(calibrated(recipe or best(), path))
    return chosen, Given(path, initial)


def needs_for(
    model: Model, recipe: Recipe, questions: Questions | None, place: Path, *, to_hub: bool, stream: bool | None
) -> Needs:
    """What quantizing a model in `place` will need, at the widest of the recipe's widths, and proving it on the way.

    Raises MopeqError where its experts do not divide into groups and words.
    """
    widest = BitMap.uniform(model.layout, max(recipe.bits))
    outputs = output_bytes(model, widest, recipe)
    profiled, tries = profiles.is_kept(model, recipe), recipe.allocator == MEASURED
    if recipe.quantizer in CALIBRATED or recipe.signal in RUNNING or tries or (questions and model.undivided):
        # The whole model is run before the first weight is written, or once all are.
        stream = False
    needs = needs_of(model, [*outputs.values()], place, to_hub=to_hub, profiled=profiled, passing=stream)
    if tries or (recipe.signal in RUNNING and not profiled):
        running = memory_needed(model, recipe.bits) if tries else memory_of(model, recipe)
        needs = replace(needs, memory=max(needs.memory, running))
    if questions is None or model.undivided or not (needs.passing or way_of(model, workplace.free_memory()).blocks):
        return needs
    proof = estimate(model, questions)
    # The proof rides along, or comes afterwards, when nothing else is in memory.
    memory = needs.memory + proof.memory if needs.passing else max(needs.memory, PROGRAM_BYTES + proof.memory)
    return replace(needs, memory=memory, disk=needs.disk + (proof.hidden_bytes if needs.passing else 0))


def checked_needs(
    model: Model, recipe: Recipe, questions: Questions | None, place: Path, *, to_hub: bool, stream: bool | None
) -> Needs:
    """The same, once it is known that this machine has it. Raises MopeqError where it has not."""
    check_routing(model, recipe)
    check_memory(model, recipe)
    selection.check_memory(model, recipe)
    if questions and way_of(model, workplace.free_memory()).blocks:
        check_blocks(model)
    needs = needs_for(model, recipe, questions, place, to_hub=to_hub, stream=stream)
    check_fits(needs, place)
    if questions and model.code and (needs.passing or way_of(model, workplace.free_memory()).blocks):
        from mopeq_hub.fidelity.tried import check_parts

        check_parts(model, questions)
    return needs
