"""A quantized folder: what it holds before it is measured, and where its original is."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import profiles
from mopeq_hub.bitmap import BitMap, of_part, quantization_config
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.cost import stored_dtype
from mopeq_hub.model import Model
from mopeq_hub.modeling.registry import Added, added
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.calibrated import tuned_weights
from mopeq_hub.quantization.run import Send, Watch, quantize_units
from mopeq_hub.quantization.shards import write_index
from mopeq_hub.quantization.stream import output_shards, plan_units
from mopeq_hub.recipe import Recipe
from mopeq_hub.rehearsal import rehearse
from mopeq_hub.remote_code import PICTURES, bring
from mopeq_hub.selection import Selection, select
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.given import NOTHING, Given
from mopeq_hub.source import companions
from mopeq_hub.untrusted import read_object

_OF_A_TOKENIZER = re.compile(r"(tokenizer|vocab|spiece|sentencepiece|tiktoken)[^_]*\.|.*\.tiktoken")
_LOCAL = Path(".mopeq") / "local.json"
"""Kept in a quantized folder and never pushed: where on this machine the source is."""


@dataclass(frozen=True)
class QuantizedRepo:
    """A folder that holds a quantized model and its manifest."""

    folder: Path
    manifest: dict[str, Any]


def _check_usable(model: Model) -> None:
    """Raises MopeqError where the source lacks weights, or what its model cannot be asked anything without."""
    if absent := model.absent:
        file = model.checkpoint.tensors[absent].file
        raise MopeqError(
            f"{file} of {model.source.name} is empty where {absent} should be",
            "finish the download, or name its source",
        )
    names = companions(model.source)
    if not any(_OF_A_TOKENIZER.match(name) for name in names):
        raise MopeqError(f"{model.source.name} has no tokenizer", "add tokenizer.json or what its tokenizer is made of")
    if model.takes_pictures and not {*PICTURES} & {*names}:
        raise MopeqError(
            f"{model.source.name} has no processor_config.json and no preprocessor_config.json",
            "add the file that says how pictures are prepared",
        )


def build(
    model: Model,
    recipe: Recipe,
    profile: Profile | None,
    work: Path,
    progress: Progress,
    given: Given = NOTHING,
    send: Send | None = None,
    watch: Watch | None = None,
    engine: Engine = LOCAL,
    bitmap: BitMap | None = None,
) -> QuantizedRepo:
    """`work`/repo with all that a quantized folder holds before it is measured.

    Goes on from what the journal in `work` says. profile: measured before; None measures it. given: what the recipe
    measures, tries or tunes on beside the model. bitmap: the widths, whatever the recipe would give. With `send` the
    weights are sent and not kept. Raises MopeqError on what is wrong with the source, and OSError where the folder
    cannot be written.
    """
    _check_usable(model)
    if bitmap is None:
        # Whoever gives one compares it with what was tried before.
        rehearse(model, recipe, progress)
        if model.parts:
            progress.say(model.parts)
    profile = (
        profiles.checked(profile, model, recipe)
        if profile
        else profiles.profile_of(model, recipe, progress, engine, given)
    )
    chosen = Selection(bitmap, None) if bitmap else select(model, recipe, profile, given, progress, engine)
    bitmap = chosen.bitmap
    folder = work / "repo"
    units = plan_units(model.checkpoint, model.layout, bitmap, recipe)
    shards = output_shards(units)
    _clear(folder, {shard.file for shard in shards})
    if model.layout.ignored:
        left = model.layout.ignored
        progress.say(f"left out: {len(left)} tensors that {model.layout.auto_class} does not load, such as {left[0]}")
    tuned = tuned_weights(model, bitmap, recipe, given.calibration, work, progress)
    weights = quantize_units(model, units, recipe, work, folder, progress, tuned.weights, send, watch, engine)
    write_index(folder, shards)
    for name in companions(model.source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _take_over(model.source.path(name), folder / name, model.trusted)
    widths = quantization_config(model.layout, bitmap, recipe)
    config = {**(model.config if model.code else _without_code(model.config)), "quantization_config": widths}
    if speaker := model.layout.speaker:
        # The part that answers may be loaded alone, by its own class, from the same files.
        config[f"{speaker}_config"] = {**config[f"{speaker}_config"], "quantization_config": of_part(widths, speaker)}
    if model.has_encoder and stored_dtype(model) == "float32":
        # The loader makes float16 of float32, which the activations of T5's kin go beyond.
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "bfloat16"}
    if own := added(model.config["model_type"]):
        config |= {"architectures": [own.model], "auto_map": own.auto_map}
        _bring_code(own, folder)
    if model.code:
        bring(model.source, model.code, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    described = {file.file: {"sha256": file.sha256, "bytes": file.nbytes} for file in weights}
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - set(described)
    files = dict(sorted({**described, **manifests.describe_files(folder, names)}.items()))
    manifest = manifests.build(model, recipe, profile, bitmap, files, tuned.calibration, chosen.document)
    manifests.write_json(folder / manifests.MANIFEST_NAME, manifest, "mopeq")
    (folder / _LOCAL).parent.mkdir()
    (folder / _LOCAL).write_text(json.dumps({"location": model.source.location}), "utf-8")
    return QuantizedRepo(folder, manifest)


def _clear(folder: Path, kept: set[str]) -> None:
    """Make the folder, or take from it all that an earlier try left but these files."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _take_over(path: Path, target: Path, code_too: bool) -> None:
    """Copy a companion of the model, less its references to code unless that is taken over too."""
    read = path.suffix == ".json" and not code_too
    content = read_object(path.read_text("utf-8", errors="replace")) if read else {}
    if "auto_map" in content:
        target.write_text(json.dumps(_without_code(content), indent=2, ensure_ascii=False) + "\n", "utf-8")
    else:
        shutil.copyfile(path, target)


def _bring_code(own: Added, folder: Path) -> None:
    """Put the files of a model of ours into the folder, and where they are found into the files of its processors, if
    it has any."""
    for path in own.files:
        shutil.copyfile(path, folder / path.name)
    if own.processor:
        _point(next(folder / name for name in PICTURES if (folder / name).is_file()), own, "AutoProcessor")
    if own.image_processor and (folder / PICTURES[-1]).is_file():
        _point(folder / PICTURES[-1], own, "AutoImageProcessor")


def _point(path: Path, own: Added, auto_class: str) -> None:
    """Say in a processor's file where the class is that this auto class loads."""
    content = read_object(path.read_text("utf-8"))
    content["auto_map"] = {**content.get("auto_map", {}), auto_class: own.auto_map[auto_class]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _without_code(content: dict[str, Any]) -> dict[str, Any]:
    """Where the classes are transformers' own, or ours, code that a source brings is not taken over."""
    return {key: value for key, value in content.items() if key != "auto_map"}


def location_of(folder: Path, manifest: dict[str, Any]) -> str | None:
    """What finds the original again: its repo and commit, or the folder it was in when `folder` was quantized here."""
    source = manifest["source"]
    if source["kind"] == "hub":
        return f"{source['name']}@{source['commit']}"
    try:
        return str(json.loads((folder / _LOCAL).read_text("utf-8"))["location"])
    except (OSError, ValueError, KeyError):
        return None


def quantized_before(folder: Path, name: str) -> QuantizedRepo:
    """What is in the folder, if it is just this publication, as it was quantized: a run that ended before it could say
    so leaves that. Raises MopeqError where it is anything else."""
    repo = (
        QuantizedRepo(folder, manifests.read_manifest(folder)) if (folder / manifests.MANIFEST_NAME).is_file() else None
    )
    if repo is None or repo.manifest["publication"] != name or not manifests.holds_its_files(folder, repo.manifest):
        raise MopeqError(f"{folder} is not empty", "name a new folder, or empty it first")
    return repo
