"""What a calibrated quantizer's process works with: its job, the original, inputs made of questions, and what it
leaves."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.fidelity.inputs import MAX_TOKENS, Encoder, Row, batches
from mopeq_hub.fidelity.questions import read_questions
from mopeq_hub.quantization.packing import Packed

Inputs = dict[str, Any]
"""What the model's forward is called with: tensors of a batch of rows, and `use_cache`."""


def read_job(path: Path) -> dict[str, Any]:
    """The job as `mopeq_hub.quantization.calibrated` describes it; torch is told its number of threads."""
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
    return auto_class.from_pretrained(job["folder"], dtype=dtype, use_safetensors=True).eval()


def calibration_inputs(job: dict[str, Any], encoder: Encoder) -> list[Inputs]:
    """The calibration questions with their answers, in batches."""
    questions = read_questions(Path(job["calibration"]) if job["calibration"] else None)
    return inputs_of(encoder.rows(list(questions.items), with_answer=True))


def inputs_of(rows: list[Row]) -> list[Inputs]:
    """What the rows' batches are called with.

    They are as large as their tokens allow, wherever an answer begins: a step of tuning looks at a few of them only.
    """
    whole = [replace(row, prompt=0) for row in rows]
    return [{**inputs, "use_cache": False} for _, inputs in batches(whole, MAX_TOKENS)]


def chosen_experts(args: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    """The numbers of each token's experts among what an experts module is called with: the one tensor of whole
    numbers."""
    return next(value for value in (*args, *named.values()) if not value.is_floating_point())


def save(job: dict[str, Any], layer: int, weights: Mapping[str, Packed]) -> None:
    """Keep the packed weights of one decoder layer, by the names of their matrices, for the process that asked."""
    from safetensors.numpy import save_file

    tensors = {f"{name}.{part}": data for name, packed in weights.items() for part, data in packed.tensors().items()}
    save_file(tensors, Path(job["target"]) / f"{layer}.safetensors")


def finish(job: dict[str, Any], inputs: list[Inputs], reached: Mapping[int, set[int]]) -> None:
    """Write the result; `reached` are the experts of each layer that a token was sent to."""
    tokens = sum(batch["input_ids"].numel() for batch in inputs)
    experts = {str(layer): sorted(seen) for layer, seen in reached.items()}
    Path(job["result"]).write_text(json.dumps({"tokens": tokens, "reached": experts}), "utf-8")
