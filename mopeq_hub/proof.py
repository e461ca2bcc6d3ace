"""Proving a quantized folder against its original, and other choices of the same recipe beside it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import workplace
from mopeq_hub.benchmarks import Benchmarks
from mopeq_hub.benchmarks import run as benchmarking
from mopeq_hub.bitmap import BitMap
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.fidelity.measure import Way, measure, way_of
from mopeq_hub.fidelity.variants import figures
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.run import Send
from mopeq_hub.questions import Questions
from mopeq_hub.recipe import CALIBRATED, Recipe
from mopeq_hub.repo import QuantizedRepo, build
from mopeq_hub.selection import PAPER
from mopeq_hub.sensitivity.given import NOTHING, Given
from mopeq_hub.source import HubSource
from mopeq_hub.version import __version__

NOT_CALIBRATED = "these widths, not calibrated"
COMPARED_BYTES = 1_000_000_000
"""Up to this size of the source, uniform widths are measured beside the bit map unless the user says otherwise."""


def prove(
    model: Model,
    repo: QuantizedRepo,
    questions: Questions,
    compare: bool | None,
    progress: Progress,
    benchmarks: Benchmarks | None = None,
) -> dict[str, Any]:
    """Measure a quantized folder and leave fidelity.json in it; the document.

    compare: measure uniform widths too; None does so for small models. benchmarks: those that both models are to answer
    as well; None keeps what is known of these weights. Raises MopeqError as `measure` does.
    """
    way = way_of(model, workplace.free_memory())
    fidelity = measure(model, repo.folder, repo.manifest, questions, way, progress)
    if compare if compare is not None else model.checkpoint.nbytes <= COMPARED_BYTES:
        fidelity["comparisons"] = _comparisons(model, repo.manifest, questions, way, progress)
    if benchmarks:
        fidelity["benchmarks"] = benchmarking.run(model, repo.folder, repo.manifest, benchmarks, way, progress)
    elif known := _known_benchmarks(repo, fidelity):
        fidelity["benchmarks"] = known
    manifests.write_json(repo.folder / manifests.FIDELITY_NAME, fidelity, "fidelity")
    return fidelity


def _known_benchmarks(repo: QuantizedRepo, fidelity: dict[str, Any]) -> dict[str, Any] | None:
    """What the folder's fidelity.json says of benchmarks, where it is of the same weights."""
    before = manifests.read_fidelity(repo.folder) or {}
    return before.get("benchmarks") if before.get("weights_digest") == fidelity["weights_digest"] else None


def _comparisons(
    model: Model, manifest: dict[str, Any], questions: Questions, way: Way, progress: Progress
) -> list[dict[str, Any]]:
    """Uniform widths of the same recipe, quantized and measured in the same way; without the calibration data, which
    a quantized folder does not keep: then they are searched, and so is the recipe's own bit map beside them."""
    recipe = Recipe.from_dict(manifest["recipe"])
    others: dict[str, Recipe] = {}
    if recipe.quantizer in CALIBRATED:
        recipe = replace(recipe, quantizer="search")
        # Its map is given; the signal that takes least stands for the one that may have looked at calibration data.
        others[NOT_CALIBRATED] = recipe.paper()
    if len(recipe.bits) > 1:
        others |= {f"uniform {bits} bits": recipe.uniform(bits) for bits in recipe.bits}
        paper = recipe.paper()
        if paper != recipe:
            others[PAPER] = paper
    found = []
    for name, other in others.items():
        bitmap = manifests.bitmap_of(manifest) if name == NOT_CALIBRATED else None
        found.append({"name": name, **_compared(model, other, bitmap, questions, way, progress)})
    return found


def _compared(
    model: Model, recipe: Recipe, bitmap: BitMap | None, questions: Questions, way: Way, progress: Progress
) -> dict[str, Any]:
    """A recipe's size and figures, measured now or, on the same questions in the same way, before: the publications of
    several budgets are compared with the same others. bitmap: widths in place of the recipe's, always measured."""
    name = manifests.publication_name(recipe, model.source.commit)
    asked = f"{questions.digest[:16]}-{questions.limit}-{'scored' if questions.scored else 'unscored'}"
    key = f"{name}-{asked}-{'blocks' if way.blocks else 'whole'}-{way.dtype}-{__version__}"
    kept = workplace.cache("compared") / f"{key}.json"
    if bitmap is not None or not kept.is_file():
        with workplace.scratch() as work:
            repo = build(model, recipe, None, work, progress, bitmap=bitmap)
            fidelity = measure(model, repo.folder, repo.manifest, questions, way, progress)
            if bitmap is not None:
                return figures(repo.manifest, fidelity)
            (work / kept.name).write_text(json.dumps(figures(repo.manifest, fidelity)), "utf-8")
            (work / kept.name).replace(kept)
    return dict(json.loads(kept.read_text("utf-8")))


def prove_on_the_way(
    model: Model,
    recipe: Recipe,
    work: Path,
    questions: Questions,
    progress: Progress,
    given: Given = NOTHING,
    send: Send | None = None,
    engine: Engine = LOCAL,
    benchmarks: Benchmarks | None = None,
) -> tuple[QuantizedRepo, dict[str, Any]]:
    """Quantize a model that only passes through into `work`/repo, its weights sent if there is `send`, and measure it
    meanwhile; the folder, with its fidelity.json, and that document.

    Goes on from what an earlier run left in `work`. benchmarks: cannot be run on weights that are let go, which the
    document says. Raises MopeqError as `build` and `measure` do.
    """
    from mopeq_hub.fidelity.riding import RidingProof

    if isinstance(model.source, HubSource):
        model.source.pass_through(work / "source")
    proof = RidingProof(model, questions, recipe, work / "states")
    repo = build(model, recipe, None, work, progress, given, send, proof, engine)
    fidelity = proof.document(repo.folder, repo.manifest, progress)
    if benchmarks:
        progress.say(f"benchmarks are not run: {benchmarking.PASSED_THROUGH}")
        fidelity["benchmarks"] = benchmarking.not_run(benchmarks, benchmarking.PASSED_THROUGH)
    manifests.write_json(repo.folder / manifests.FIDELITY_NAME, fidelity, "fidelity")
    return repo, fidelity
