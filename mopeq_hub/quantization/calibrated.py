"""SignRound: scales and roundings tuned on calibration data (arXiv 2309.05516), for models that fit memory.

auto-round tunes, in a process of its own (`signround_worker`); this project packs what it found and writes the files.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.bitmap import BitMap, width_of
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.fidelity.questions import Questions, read_questions
from mopeq_hub.model import Model
from mopeq_hub.processes import KILLED, run_module
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.packing import Packed
from mopeq_hub.recipe import Recipe
from mopeq_hub.source import companions

_PROCESS_BYTES = 2_000_000_000
"""What torch, transformers and auto-round take beside the weights."""
_TUNING_BYTES = 24
"""For each weight of the decoder layer that is tuned: the float32 rounding, its gradient, the best one so far, and what
rounding the weight leaves for the way back."""


@dataclass(frozen=True)
class Tuned:
    """What tuning gave: packed weights by the name of their matrix, and what the manifest says of their calibration."""

    weights: Mapping[str, Packed]
    calibration: dict[str, Any] | None


UNTUNED = Tuned(MappingProxyType({}), None)


def calibrated(recipe: Recipe, calibration: Path | None) -> Recipe:
    """The recipe with the digest of its calibration questions, the bundled ones where no file is named.

    Raises UsageError where a file is named for a quantizer that uses none, MopeqError where it holds no questions.
    """
    if recipe.quantizer == "signround":
        return replace(recipe, calibration=read_questions(calibration).digest)
    if calibration:
        raise UsageError(f"--quantizer {recipe.quantizer} uses no calibration data", "leave --calibration out")
    return recipe


def check_memory(model: Model, recipe: Recipe) -> None:
    """Raises MopeqError where the recipe tunes and this machine's memory does not hold the model and what tuning
    takes."""
    if recipe.quantizer != "signround":
        return
    needed, free = memory_needed(model, _has_gpu()), workplace.free_memory()
    if needed > free:
        raise MopeqError(
            f"{free / 1e9:.1f} GB of free memory do not hold {model.source.name} while it is tuned",
            f"use a machine with {math.ceil(needed / 1e9)} GB free, or --quantizer search",
        )


def memory_needed(model: Model, on_gpu: bool) -> int:
    """Bytes of this machine's memory that tuning takes; what it takes of a GPU's is not in it."""
    weights = {name: math.prod(info.shape) for name, info in model.checkpoint.tensors.items()}
    if on_gpu:
        return model.checkpoint.nbytes + _PROCESS_BYTES
    layers: dict[int, int] = {}
    for name, layer in model.layout.layer_of.items():
        layers[layer] = layers.get(layer, 0) + weights[name]
    return 4 * sum(weights.values()) + _TUNING_BYTES * max(layers.values()) + _PROCESS_BYTES


@contextmanager
def tuning(
    model: Model, bitmap: BitMap, recipe: Recipe, calibration: Path | None, progress: Progress
) -> Iterator[Tuned]:
    """What the recipe has tuned, readable until the context ends; nothing where it tunes nothing.

    Experts that no calibration token reached are left out. Raises MopeqError with the last words of what failed.
    """
    if recipe.quantizer != "signround":
        yield UNTUNED
        return
    questions = read_questions(calibration)
    for name in [*model.checkpoint.shards, *companions(model.source)]:
        model.source.path(name)
    layers = _widths(model, bitmap, recipe)
    with workplace.scratch() as target:
        job = {
            "folder": model.source.path("config.json").parent,
            "target": target,
            "calibration": calibration,
            "auto_class": model.layout.auto_class,
            "blocks": model.layout.blocks,
            "experts": {str(layer): module for layer, module in model.layout.experts_modules.items()},
            "layers": layers,
            "group_size": recipe.group_size,
            "symmetric": recipe.symmetric,
            "iterations": recipe.iterations,
            "seed": recipe.seed,
        }
        with progress.stage("tune", recipe.iterations * len(layers), "steps") as advance:
            result = run_module("mopeq_hub.quantization.signround_worker", job, advance, _failed)
        unreached = [
            expert for expert in model.layout.experts if expert.index not in result["reached"][str(expert.layer)]
        ]
        untuned = {matrix.name for expert in unreached for matrix in model.layout.experts[expert]}
        weights = _PackedFiles(sorted(target.glob("*.safetensors")), untuned)
        yield Tuned(weights, _described(questions, result["tokens"], len(unreached)))


def _widths(model: Model, bitmap: BitMap, recipe: Recipe) -> list[dict[str, int]]:
    """Width by matrix name, for each decoder layer that has any."""
    layers: dict[int, dict[str, int]] = {}
    for matrix in model.layout.matrices:
        layer = model.layout.layer_of[matrix.source]
        layers.setdefault(layer, {})[matrix.name] = width_of(matrix, bitmap, recipe)
    return [layers[layer] for layer in sorted(layers)]


def _described(questions: Questions, tokens: int, unreached: int) -> dict[str, Any]:
    return {
        "bundled": questions.name == "bundled",
        "sha256": questions.digest,
        "questions": len(questions.items),
        "with_picture": questions.with_picture,
        "tokens": tokens,
        "unreached_experts": unreached,
    }


class _PackedFiles(Mapping[str, Packed]):
    """The packed weights in the worker's files, read when asked for."""

    def __init__(self, paths: list[Path], left_out: set[str]) -> None:
        from safetensors import safe_open

        self._home: dict[str, Any] = {}
        for path in paths:
            file = safe_open(path, framework="numpy")
            names = {tensor.rpartition(".")[0] for tensor in file.keys()}  # noqa: SIM118
            self._home |= dict.fromkeys(names - left_out, file)

    def __getitem__(self, name: str) -> Packed:
        file = self._home[name]
        return Packed(*(file.get_tensor(f"{name}.{part}") for part in ("qweight", "qzeros", "scales")))

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
            "the process that tuned the model was ended, most likely for want of memory",
            "use a machine with more, or --quantizer search",
        )
    return MopeqError(f"auto-round could not tune the model: {words}", "use --quantizer search")
