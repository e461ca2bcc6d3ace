"""The proof: original and published model on the same inputs, whole or block by block, and fidelity.json of it."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.cost import estimate, stored_dtype
from mopeq_hub.fidelity.document import Outcome, document
from mopeq_hub.fidelity.runner import Job, run
from mopeq_hub.manifest import expert_widths, remote_files
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.questions import Questions
from mopeq_hub.version import __version__

LOADING_TROUBLES = {
    "missing_keys": "not in its files",
    "unexpected_keys": "not used",
    "mismatched_keys": "of another shape",
}
_PROCESS_BYTES = 1_200_000_000
"""What torch, transformers and the activations of one batch take beside the weights."""


@dataclass(frozen=True)
class Way:
    """How the machine can measure a model: each whole in a process of its own, or both block by block; and in which
    dtype, by its name in torch."""

    blocks: bool
    dtype: str


def measure(
    model: Model,
    folder: Path,
    manifest: dict[str, Any],
    questions: Questions,
    way: Way,
    progress: Progress,
) -> dict[str, Any]:
    """fidelity.json of the publication in `folder`, its comparisons left empty.

    Raises MopeqError where the published form does not load with every weight in its place and width, measures NaN, or
    cannot be measured in this machine's memory.
    """
    if way.blocks:
        check_blocks(model)
        from mopeq_hub.fidelity.by_blocks import measure_by_blocks

        _check_memory(model, questions)
        loading = check_published(folder, manifest, progress)
        measured = measure_by_blocks(model, folder, manifest, questions, way.dtype, progress)
        return document(Outcome.of_blocks(measured, loading), questions, manifest)
    logits, original = _original(model, questions, way, progress)
    auto_class = manifest["model"]["auto_class"]
    job = Job(
        "published", folder, auto_class, questions.path, logits, way.dtype, questions.limit, model.trusted, _timed()
    )
    published = run(job, _steps(questions), progress)
    check_loading(published["loading"], manifest)
    outcome = Outcome(
        method="whole",
        figures=published,
        questions=published["questions"],
        loading=published["loading"],
        dtypes=(original["loading"]["dtype"], published["loading"]["dtype"]),
        accuracy=(original["accuracy"], published["accuracy"]) if questions.scored else None,
    )
    return document(outcome, questions, manifest)


def way_of(model: Model, available: int) -> Way:
    """Whole where `available` bytes hold the original: in float32, or else as it is stored. Otherwise block by
    block.

    transformers makes bfloat16 of float8, and nothing else.
    """
    room = available - _PROCESS_BYTES
    weights, float8 = model.checkpoint.size, "F8_E4M3" in model.checkpoint.bytes_stored_as
    if 4 * weights <= room and not float8:
        return Way(blocks=False, dtype="float32")
    held = max(model.checkpoint.nbytes, 2 * weights if float8 else 0)
    return Way(blocks=held > room, dtype=stored_dtype(model))


def check_blocks(model: Model) -> None:
    """Raises MopeqError where a model cannot be measured block by block."""
    if model.undivided:
        needed = (model.checkpoint.nbytes + _PROCESS_BYTES) / 1e9
        raise MopeqError(
            f"{workplace.free_memory() / 1e9:.1f} GB of free memory do not hold {model.source.name}, and a model "
            f"{model.undivided} is not measured block by block",
            f"use a machine with {math.ceil(needed)} GB free",
        )


def _check_memory(model: Model, questions: Questions) -> None:
    """Raises MopeqError where not even the largest block and the hidden states fit."""
    needed, available = estimate(model, questions).memory + _PROCESS_BYTES, workplace.free_memory()
    if needed > available:
        raise MopeqError(
            f"{available / 1e9:.1f} GB of free memory do not hold a block of {model.source.name} and its hidden states",
            f"use a machine with {needed / 1e9:.0f} GB free, or fewer --fidelity-tokens",
        )


def check_published(folder: Path, manifest: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What the loader says of the published form, loaded where memory allows it, else prepared from its headers.

    Raises MopeqError where a weight is not in its place and width.
    """
    fits = manifest["sizes"]["published_bytes"] + _PROCESS_BYTES <= workplace.free_memory()
    return _checked_loading("load" if fits else "prepare", folder, manifest, progress)


def check_prepared(folder: Path, manifest: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What the loader would say of the published form, by the headers of its files alone.

    Raises MopeqError where a weight is not in its place and width.
    """
    return _checked_loading("prepare", folder, manifest, progress)


def _checked_loading(
    role: Literal["load", "prepare"], folder: Path, manifest: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    # Whoever made this publication of such a model trusted its code.
    trusted = bool(remote_files(manifest))
    job = Job(role, folder, manifest["model"]["auto_class"], dtype="float32", trusted=trusted, timed=_timed())
    loading = dict(run(job, 0, progress)["loading"])
    check_loading(loading, manifest)
    return loading


def check_loading(loading: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raises MopeqError unless the loader found all it looked for, used all it found, and at the bit map's widths."""
    hint = "nothing was published; report the model's name"
    for kind, words in LOADING_TROUBLES.items():
        if names := loading[kind]:
            others = f" and {len(names) - 1} others are" if len(names) > 1 else " is"
            raise MopeqError(f"the published form does not load: {names[0]}{others} {words}", hint)
    expected = expert_widths(manifest) | manifest["rest"].get("widths", {})
    for name, bits in expected.items():
        found_bits = loading["widths"].get(name, 16)
        if found_bits != bits:
            raise MopeqError(f"the published form loads {name} with {found_bits} bits, not {bits}", hint)
    rest = {name: bits for name, bits in loading["widths"].items() if name not in expected}
    wrong = sorted(name for name, bits in rest.items() if bits != manifest["rest"]["bits"])
    if wrong:
        raise MopeqError(f"the published form loads {wrong[0]} with {rest[wrong[0]]} bits", hint)
    quantized = manifest["rest"]["quantized"]
    if "widths" not in manifest["rest"] and len(rest) != quantized:
        raise MopeqError(f"the published form loads {len(rest)} of {quantized} other quantized layers", hint)


def load_alone(folder: Path, auto_class: str, trusted: bool = False) -> dict[str, Any]:
    """What the loader says of every weight of a published folder, in a process of its own, where the runtime answers
    one question as the loaded model does.

    trusted: whether code in the folder may be run.
    """
    return dict(run(Job("load", folder, auto_class, dtype="float32", trusted=trusted), 0, Quiet())["loading"])


def _timed() -> bool:
    """Whether speeds are measured: what is to come out the same everywhere has none."""
    return "SOURCE_DATE_EPOCH" not in os.environ


def _original(model: Model, questions: Questions, way: Way, progress: Progress) -> tuple[Path, dict[str, Any]]:
    """The original's answer logits and results, from the cache where they were computed before."""
    key = f"{model.source.commit[:16]}-{questions.digest[:16]}-{questions.limit}-{way.dtype}"
    folder = workplace.cache("original") / f"{key}-{'scored' if questions.scored else 'unscored'}-{__version__}"
    logits, result = folder / "logits.npy", folder / "result.json"
    if not result.is_file():
        home = model.local_folder()
        with workplace.scratch() as scratch:
            kept = scratch / logits.name
            asked = questions.path, kept, way.dtype, questions.limit
            job = Job("original", home, model.layout.auto_class, *asked, trusted=model.trusted)
            (scratch / result.name).write_text(json.dumps(run(job, _steps(questions), progress)), "utf-8")
            folder.mkdir(parents=True, exist_ok=True)
            for name in (logits.name, result.name):
                (scratch / name).replace(folder / name)
    return logits, json.loads(result.read_text("utf-8"))


def _steps(questions: Questions) -> int:
    """Rows a worker will finish: each question once for its logits and, where answers count, once more to answer it."""
    return len(questions.items) * (2 if questions.scored else 1)
