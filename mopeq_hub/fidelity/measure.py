"""The proof: original and published model on the same inputs, and fidelity.json of it."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import PROJECTIONS, matrix_name
from mopeq_hub.fidelity.questions import Questions, read_questions
from mopeq_hub.fidelity.runner import Job, run
from mopeq_hub.manifest import SCHEMA_VERSION, weights_digest
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.source import companions
from mopeq_hub.version import __version__

_LOADING_TROUBLES = {
    "missing_keys": "not in its files",
    "unexpected_keys": "not used",
    "mismatched_keys": "of another shape",
}
_PROCESS_BYTES = 1_200_000_000
"""What torch, transformers and the activations of one batch take beside the weights."""


@dataclass(frozen=True)
class Reach:
    """How much of the model the machine can hold: its first `layers` decoder layers, the original in `dtype`."""

    layers: int
    total: int
    dtype: str

    @property
    def cut(self) -> int | None:
        """How many layers the model is cut to; None where it is measured whole."""
        return None if self.layers == self.total else self.layers


def measure(
    model: Model,
    folder: Path,
    manifest: dict[str, Any],
    questions_path: Path | None,
    reach: "Reach",
    progress: Progress,
) -> dict[str, Any]:
    """fidelity.json of the publication in `folder`, its comparisons left empty.

    Raises MopeqError where the published form does not load with every weight in its place and width, or measures NaN.
    """
    questions = read_questions(questions_path)
    logits, original = _original(model, questions, questions_path, reach, progress)
    job = Job("published", folder, manifest["model"]["auto_class"], questions_path, logits, layers=reach.cut)
    published = run(job, _steps(questions), progress)
    check_loading(published["loading"], manifest, reach.layers)
    return {
        "schema_version": SCHEMA_VERSION,
        "publication": manifest["publication"],
        "weights_digest": weights_digest(manifest),
        "inputs": {
            "name": questions.name,
            "sha256": questions.digest,
            "questions": len(questions.items),
            "with_picture": questions.with_picture,
            "tokens": published["tokens"],
        },
        "layers": {"measured": reach.layers, "total": reach.total},
        "kl": {"mean": _number(published, "kl_mean"), "p99": _number(published, "kl_p99")},
        "top1_agreement": _number(published, "top1_agreement"),
        "perplexity": {
            "original": math.exp(_number(original, "loss")),
            "published": math.exp(_number(published, "loss")),
            "ratio": math.exp(published["loss"] - original["loss"]),
        },
        "accuracy": {
            "original": original["accuracy"],
            "published": published["accuracy"],
            "questions": len(questions.items),
        }
        if questions.scored
        else None,
        "loading": {
            "quantized_modules": len(published["loading"]["widths"]),
            "original_dtype": original["loading"]["dtype"],
            "published_dtype": published["loading"]["dtype"],
        },
        "comparisons": [],
    }


def reach_of(model: Model, available: int) -> Reach:
    """As many decoder layers of the original as fit into `available` bytes, in float32 if the whole model then fits.

    Raises MopeqError where not even one layer does.
    """
    total = model.layout.layer_count
    outside, layers = 0, [0] * total
    for info in model.checkpoint.tensors.values():
        if info.name in model.layout.layer_of:
            layers[model.layout.layer_of[info.name]] += math.prod(info.shape)
        else:
            outside += math.prod(info.shape)
    room = available - _PROCESS_BYTES
    if 4 * (outside + sum(layers)) <= room:
        return Reach(total, total, "float32")
    fitting, used = 0, 2 * outside
    for count in layers:
        used += 2 * count
        if used > room:
            break
        fitting += 1
    # Fewer layers would hold no expert, and measure nothing that was done.
    least = min(model.layout.experts_modules) + 1
    if fitting < least:
        needed = 2 * (outside + sum(layers[:least])) + _PROCESS_BYTES
        raise MopeqError(
            f"{available / 1e9:.1f} GB of free memory do not hold one layer of experts of {model.source.name}",
            f"use a machine with {needed / 1e9:.0f} GB free",
        )
    return Reach(fitting, total, "bfloat16")


def check_loading(loading: dict[str, Any], manifest: dict[str, Any], layers: int) -> None:
    """Raises MopeqError unless the loader found all it looked for, used all it found, and at the bit map's widths.

    Of a model cut after `layers` decoder layers, the tensors of later layers are left over by design.
    """
    hint = "nothing was published; report the model's name"
    later = re.compile(rf"{re.escape(manifest['model']['blocks'])}\.(\d+)\.")
    for kind, words in _LOADING_TROUBLES.items():
        names = [name for name in loading[kind] if not ((found := later.match(name)) and int(found[1]) >= layers)]
        if names:
            others = f" and {len(names) - 1} others are" if len(names) > 1 else " is"
            raise MopeqError(f"the published form does not load: {names[0]}{others} {words}", hint)
    expected = {
        matrix_name(entry["module"], index, projection): bits
        for entry in manifest["experts"]
        if entry["layer"] < layers
        for index, bits in enumerate(entry["bits"])
        for projection in PROJECTIONS
    }
    for name, bits in expected.items():
        found_bits = loading["widths"].get(name, 16)
        if found_bits != bits:
            raise MopeqError(f"the published form loads {name} with {found_bits} bits, not {bits}", hint)
    rest = {name: bits for name, bits in loading["widths"].items() if name not in expected}
    wrong = sorted(name for name, bits in rest.items() if bits != manifest["rest"]["bits"])
    if wrong:
        raise MopeqError(f"the published form loads {wrong[0]} with {rest[wrong[0]]} bits", hint)
    if layers >= manifest["model"]["layers"] and len(rest) != manifest["rest"]["quantized"]:
        quantized = manifest["rest"]["quantized"]
        raise MopeqError(f"the published form loads {len(rest)} of {quantized} other quantized layers", hint)


def load_alone(folder: Path, auto_class: str) -> dict[str, Any]:
    """What the loader says of every weight of a published folder, in a process of its own; nothing is computed."""
    return dict(run(Job("load", folder, auto_class), 0, Quiet())["loading"])


def _original(
    model: Model, questions: Questions, questions_path: Path | None, reach: Reach, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """The original's answer logits and results, from the cache where they were computed before."""
    key = f"{model.source.commit[:16]}-{questions.digest[:16]}-{reach.layers}-{reach.dtype}"
    folder = workplace.cache("original") / f"{key}-{'scored' if questions.scored else 'unscored'}-{__version__}"
    logits, result = folder / "logits.npy", folder / "result.json"
    if not result.is_file():
        for name in [*model.checkpoint.shards, *companions(model.source)]:
            model.source.path(name)
        home = model.source.path("config.json").parent
        with workplace.scratch() as scratch:
            job = Job(
                "original", home, model.layout.auto_class, questions_path, scratch / logits.name, reach.dtype, reach.cut
            )
            (scratch / result.name).write_text(json.dumps(run(job, _steps(questions), progress)), "utf-8")
            folder.mkdir(parents=True, exist_ok=True)
            for name in (logits.name, result.name):
                (scratch / name).replace(folder / name)
    return logits, json.loads(result.read_text("utf-8"))


def _steps(questions: Questions) -> int:
    """Rows a worker will finish: each question once for its logits and, where answers count, once more to answer it."""
    return len(questions.items) * (2 if questions.scored else 1)


def _number(result: dict[str, Any], name: str) -> float:
    value = result[name]
    if not math.isfinite(value):
        raise MopeqError(
            f"the {name} measured is {value}", "nothing was published; the source or its published form computes NaN"
        )
    return float(value)
