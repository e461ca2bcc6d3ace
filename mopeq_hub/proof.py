"""Proving a quantized folder against its original, and other choices of the same recipe beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import workplace
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.fidelity.measure import Way, measure, way_of
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.run import Send
from mopeq_hub.questions import Questions
from mopeq_hub.recipe import CALIBRATED, Recipe
from mopeq_hub.repo import QuantizedRepo, build
from mopeq_hub.selection import PAPER
from mopeq_hub.sensitivity.given import NOTHING, Given
from mopeq_hub.source import HubSource

NOT_CALIBRATED = "these widths, not calibrated"
COMPARED_BYTES = 1_000_000_000
"""Up to this size of the source, uniform widths are measured beside the bit map unless the user says otherwise."""


def prove(
    model: Model, repo: QuantizedRepo, questions: Questions, compare: bool | None, progress: Progress
) -> dict[str, Any]:
    """Measure a quantized folder and leave fidelity.json in it; the document.

    compare: measure uniform widths too; None does so for small models. Raises MopeqError as `measure` does.
    """
    way = way_of(model, workplace.free_memory())
    fidelity = measure(model, repo.folder, repo.manifest, questions, way, progress)
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
        # Its map is given; the signal that takes least stands for the one that may have looked at calibration data.
        others[NOT_CALIBRATED] = recipe.paper()
    if len(recipe.bits) > 1:
        others |= {f"uniform {bits} bits": recipe.uniform(bits) for bits in recipe.bits}
        paper = recipe.paper()
        if paper != recipe:
            others[PAPER] = paper
    found = []
    for name, other in others.items():
        with workplace.scratch() as work:
            bitmap = manifests.bitmap_of(manifest) if name == NOT_CALIBRATED else None
            repo = build(model, other, None, work, progress, bitmap=bitmap)
            fidelity = measure(model, repo.folder, repo.manifest, questions, way, progress)
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


def prove_on_the_way(
    model: Model,
    recipe: Recipe,
    work: Path,
    questions: Questions,
    progress: Progress,
    given: Given = NOTHING,
    send: Send | None = None,
    engine: Engine = LOCAL,
) -> tuple[QuantizedRepo, dict[str, Any]]:
    """Quantize a model that only passes through into `work`/repo, its weights sent if there is `send`, and measure it
    meanwhile; the folder, with its fidelity.json, and that document.

    Goes on from what an earlier run left in `work`. Raises MopeqError as `build` and `measure` do.
    """
    from mopeq_hub.fidelity.riding import RidingProof

    if isinstance(model.source, HubSource):
        model.source.pass_through(work / "source")
    proof = RidingProof(model, questions, recipe, work / "states")
    repo = build(model, recipe, None, work, progress, given, send, proof, engine)
    fidelity = proof.document(repo.folder, repo.manifest, progress)
    manifests.write_json(repo.folder / manifests.FIDELITY_NAME, fidelity, "fidelity")
    return repo, fidelity
