"""What a process that runs the original works with: job, model, its weights rounded, inputs made of questions."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.activations import ACT2FN

from mopeq_hub.checkpoint import use_safetensors
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.model import Model
from mopeq_hub.packing import Packed, dequantize, quantize
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import MAX_TOKENS, Encoder, Row, batches

Inputs = dict[str, Any]
"""What the model's forward is called with: tensors of a batch of rows, and `use_cache`."""


def read_job(path: Path) -> dict[str, Any]:
    """The job as whoever asks describes it; torch is told its number of threads."""
    job = dict(json.loads(path.read_text("utf-8")))
    torch.set_num_threads(job["threads"])
    return job


def load(job: dict[str, Any]) -> Any:
    """The original on the CPU; in float32 where it will also compute there, and as it is stored for a GPU."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    auto_class = getattr(transformers, job["auto_class"])
    safe = use_safetensors(Path(job["folder"]))
    return auto_class.from_pretrained(job["folder"], dtype=dtype, use_safetensors=safe).eval()


class Rounded:
    """Weights of a model as each width leaves them; their packed forms are kept."""

    def __init__(self, model: Model, group_size: int, symmetric: bool, search: bool) -> None:
        self._checkpoint = model.checkpoint
        self._settings = group_size, symmetric, search
        self._packed: dict[tuple[str, int], Packed] = {}

    def weight(self, matrix: Matrix, bits: int) -> torch.Tensor:
        """The matrix [out, in] at so many bits, float32."""
        group_size, symmetric, search = self._settings
        key = matrix.name, bits
        if key not in self._packed:
            self._packed[key] = quantize(matrix.read(self._checkpoint), bits, group_size, symmetric, search)
        return torch.from_numpy(dequantize(self._packed[key], bits, symmetric))


def calibration_inputs(job: dict[str, Any], encoder: Encoder) -> list[Inputs]:
    """The calibration questions with their answers, in batches."""
    questions = read_questions(Path(job["calibration"]) if job["calibration"] else None)
    questions = questions.askable(encoder.takes_pictures)
    return inputs_of(encoder.rows(list(questions.items), with_answer=True))


def inputs_of(rows: list[Row]) -> list[Inputs]:
    """What the rows' batches are called with.

    They are as large as their tokens allow, wherever an answer begins: a step of tuning looks at a few of them only.
    """
    whole = [replace(row, prompt=0) for row in rows]
    return [{**inputs, "use_cache": False} for _, inputs in batches(whole, MAX_TOKENS)]


NO_EXPERT = -1
"""Chosen by a token that no expert of its layer has room for, where they take no more than so many."""


def chosen_experts(args: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    """The numbers of each token's experts [..., k] among what an experts module is called with, the first its hidden
    states: the one tensor of whole numbers, or of a flag for each expert."""
    states, *others = (*args, *named.values())
    chosen = next(value for value in others if not value.is_floating_point())
    if chosen.dim() == states.dim():
        return chosen
    return torch.where(chosen.any(-1), chosen.argmax(-1), NO_EXPERT)


def numbers_of(chosen: torch.Tensor) -> list[int]:
    """The experts that any token chose."""
    return [index for index in chosen.unique().tolist() if index != NO_EXPERT]


class LiveExpert:
    """An expert of a live model. down: the weight [hidden, inner] of its last projection."""

    def __init__(self, module: Any, index: int, layout: Layout) -> None:
        """module: the experts module that holds it."""
        self._module, self._fused = module, bool(layout.family.fused)
        if self._fused:
            self._first, self.down = module.gate_up_proj[index], module.down_proj[index]
        else:
            linears = {name: module.get_submodule(path.format(index)) for name, path in layout.family.modules}
            self._first, self.down = linears["up"].weight, linears["down"].weight
            self._activation = ACT2FN[layout.routing.activation]

    def outputs(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the projections before the last make of hidden states [..., hidden], by name."""
        whole = torch.nn.functional.linear(states, self._first)
        return dict(zip(("gate", "up"), whole.chunk(2, -1), strict=True)) if self._fused else {"up": whole}

    def inner(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What goes into the last projection [..., inner]."""
        if self._fused:
            return self._module._apply_gate(torch.cat([outputs["gate"], outputs["up"]], -1))
        return self._activation(outputs["up"])
