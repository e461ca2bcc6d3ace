"""Quantizers that look at what the model computes: their part in the process that publishes.

Each works in a process of its own, where it loads the original and runs it on the calibration questions; it leaves
packed weights, which this project's writer puts into place like those that it quantizes itself.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.bitmap import BitMap, width_of
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.experts import Expert, Layout, Matrix
from mopeq_hub.families import text_model_type
from mopeq_hub.model import Model
from mopeq_hub.packing import Packed
from mopeq_hub.processes import KILLED, run_module
from mopeq_hub.progress import Progress
from mopeq_hub.questions import Questions, read_questions
from mopeq_hub.recipe import BEST, CALIBRATED, RUNNING, Recipe
from mopeq_hub.sensitivity import by_running

_MODULES = {"signround": "mopeq_hub.quantization.signround", "gptq": "mopeq_hub.quantization.gptq"}
_UNTUNABLE = {
    **dict.fromkeys(
        ("gpt_oss", "llama4", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_omni_moe", "qwen3_omni_moe_thinker"),
        "auto-round puts modules of its own in the place of {}'s experts, and which a token reached is not known",
    ),
    **dict.fromkeys(("muse_spark", "step3p7"), "auto-round does not tune {}'s experts as they compute"),
    **dict.fromkeys(
        ("dots3_note", "glm5_next", "inkling2", "inkling_mm_model"), "auto-round's tuning does not know {}'s layers"
    ),
}
"""By model type, why auto-round cannot tune a model, with a place for its name."""
_PROCESS_BYTES = 2_000_000_000
"""What torch, transformers and auto-round take beside the weights."""
_TUNING_BYTES = 40
"""For each weight of the decoder layer that SignRound tunes: its rounding in float32, the gradient of that, and what
rounding the weight leaves for the way back. Measured: 38."""


@dataclass(frozen=True)
class Tuned:
    """Packed weights by the name of their matrix, and what the manifest says of their calibration."""

    weights: Mapping[str, Packed]
    calibration: dict[str, Any] | None


UNTUNED = Tuned(MappingProxyType({}), None)


def calibrated(recipe: Recipe, calibration: Path | None) -> Recipe:
    """The recipe with the digest of the calibration questions that its quantizer or its signal looks at, the bundled
    ones where no file is named. A file that only the signal can be meant for makes it the signal's inputs.

    Raises UsageError where a file is named that nothing uses, MopeqError where it holds no questions.
    """
    tunes, runs = recipe.quantizer in CALIBRATED, recipe.signal in (*RUNNING, BEST)
    if calibration and not tunes and not runs:
        raise UsageError(
            f"neither --signal {recipe.signal} nor --quantizer {recipe.quantizer} uses calibration data",
            "leave --calibration out, or add --signal fisher",
        )
    if calibration and not tunes:
        recipe = replace(recipe, inputs="calibration")
    looks = tunes or (runs and recipe.inputs == "calibration")
    return replace(recipe, calibration=read_questions(calibration).digest) if looks else recipe


def check_memory(model: Model, recipe: Recipe) -> None:
    """Raises MopeqError where the recipe runs the model and this machine's memory does not hold it."""
    by_running.check_memory(model, recipe)
    if recipe.quantizer not in CALIBRATED:
        return
    if recipe.quantizer == "signround" and model.has_encoder:
        raise MopeqError(
            f"--quantizer signround tunes decoders alone, and {model.source.name} has an encoder",
            "use --quantizer gptq, or --quantizer search",
        )
    kinds = str(model.config.get("model_type")), text_model_type(model.config)
    if recipe.quantizer == "signround" and (troubles := [_UNTUNABLE[kind] for kind in kinds if kind in _UNTUNABLE]):
        raise MopeqError(
            f"--quantizer signround: {troubles[0].format(model.source.name)}",
            "use --quantizer gptq, or --quantizer search",
        )
    needed, free = memory_needed(model, recipe, _has_gpu()), workplace.free_memory()
    if needed > free:
        raise MopeqError(
            f"{free / 1e9:.1f} GB of free memory do not hold {model.source.name} for --quantizer {recipe.quantizer}",
            f"use a machine with {math.ceil(needed / 1e9)} GB free, or --quantizer search",
        )


def memory_needed(model: Model, recipe: Recipe, on_gpu: bool) -> int:
    """Bytes of this machine's memory that the quantizer takes; what it takes of a GPU's is not in it."""
    layers = by_layer(model.layout)
    whole = _PROCESS_BYTES + (model.checkpoint.nbytes if on_gpu else 4 * model.checkpoint.size)
    if recipe.quantizer == "gptq":
        return whole + max(hessian_bytes(matrices) for matrices in layers.values())
    tuned = max(sum(matrix.size for matrix in matrices) for matrices in layers.values())
    return whole if on_gpu else whole + _TUNING_BYTES * tuned


def tuned_weights(
    model: Model, bitmap: BitMap, recipe: Recipe, calibration: Path | None, work: Path, progress: Progress
) -> Tuned:
    """What the recipe's quantizer finds by calibration; nothing where it uses none.

    It is kept in `work`, so that a run that is stopped later does not tune again. Experts that no calibration token
    reached are left out. Raises MopeqError with the last words of what failed.
    """
    if recipe.quantizer not in CALIBRATED:
        return UNTUNED
    questions = read_questions(calibration)
    target = work / "tuned"
    result_path = target / "result.json"
    if not result_path.is_file():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        result = _tune(model, bitmap, recipe, calibration, target, progress)
        result_path.write_text(json.dumps(result), "utf-8")
        # There is something to go on from.
        (work / workplace.JOURNAL).touch()
    result = json.loads(result_path.read_text("utf-8"))
    reached = {Expert(int(layer), index) for layer, seen in result["reached"].items() for index in seen}
    unreached = [expert for expert in model.layout.experts if expert not in reached]
    untuned = {matrix.name for expert in unreached for matrix in model.layout.experts[expert]}
    weights = _PackedFiles(sorted(target.glob("*.safetensors")), untuned)
    return Tuned(weights, _described(questions, result["tokens"], len(unreached)))


def _tune(
    model: Model, bitmap: BitMap, recipe: Recipe, calibration: Path | None, target: Path, progress: Progress
) -> dict[str, Any]:
    """Let the quantizer's process leave packed weights in `target`; what it says of them."""
    layers = by_layer(model.layout)
    job = {
        "folder": model.local_folder(),
        "target": target,
        "calibration": calibration,
        "auto_class": model.layout.auto_class,
        "trusted": model.trusted,
        "blocks": model.layout.blocks,
        "experts": [(module.layer, module.first, module.count, module.name) for module in model.layout.modules],
        "layers": {
            str(layer): {matrix.name: width_of(matrix, bitmap, recipe) for matrix in matrices}
            for layer, matrices in layers.items()
        },
        "group_size": recipe.group_size,
        "symmetric": recipe.symmetric,
        "iterations": recipe.iterations,
        "seed": recipe.seed,
    }
    steps = len(layers) * (recipe.iterations if recipe.quantizer == "signround" else 1)
    with progress.stage("tune", steps, "steps") as advance:
        return run_module(_MODULES[recipe.quantizer], job, advance, _failed)


def by_layer(layout: Layout) -> dict[int, list[Matrix]]:
    """The matrices of each decoder layer that has any, in order."""
    layers: dict[int, list[Matrix]] = {}
    for matrix in layout.matrices:
        layers.setdefault(layout.layer_of[matrix.source], []).append(matrix)
    return dict(sorted(layers.items()))


def input_of(matrix: Matrix) -> str:
    """A name for what goes into a matrix; gate and up of an expert are given the same."""
    return input_name(matrix.name) if matrix.projection in ("gate", "up") else matrix.name


def input_name(name: str) -> str:
    """The same of an expert's gate or up, by the name of its module: that of the expert."""
    return name.rpartition(".")[0]


def hessian_bytes(matrices: list[Matrix]) -> int:
    """Bytes of X X^T [in, in], float32, of all that goes into these matrices."""
    return sum(4 * columns**2 for columns in {input_of(matrix): matrix.shape[1] for matrix in matrices}.values())


def _described(questions: Questions, tokens: int, unreached: int) -> dict[str, Any]:
    return {
        "bundled": questions.name == "bundled",
        "sha256": questions.digest,
        "questions": len(questions.items),
        "with_picture": sum(item.image is not None for item in questions.items),
        "tokens": tokens,
        "unreached_experts": unreached,
    }


class _PackedFiles(Mapping[str, Packed]):
    """The packed weights in the other process's files, read when asked for."""

    def __init__(self, paths: list[Path], left_out: set[str]) -> None:
        from safetensors import safe_open

        self._home: dict[str, Any] = {}
        for path in paths:
            file = safe_open(path, framework="numpy")
            names = {tensor.rpartition(".")[0] for tensor in file.keys()}  # noqa: SIM118
            self._home |= dict.fromkeys(names - left_out, file)

    def __getitem__(self, name: str) -> Packed:
        return Packed.of(name, self._home[name].get_tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _failed(status: int, words: str) -> MopeqError:
    if status == KILLED:
        return MopeqError(
            "the process that ran the model for calibration was ended, most likely for want of memory",
            "use a machine with more, or --quantizer search",
        )
    return MopeqError(f"the model could not be calibrated: {words}", "use --quantizer search")
