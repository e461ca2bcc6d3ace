"""One model measured in a process of its own, started by `mopeq_hub.processes`.

auto-round's loader changes transformers for the whole process, so original and published model must never share one.
The original's worker writes the logits of every answer token to a file; the published model's worker reads them and
compares. The job is a JSON file, the result another; progress goes to standard output, one number of finished rows a
line.
"""

import json
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.checkpoint import Checkpoint, use_safetensors
from mopeq_hub.families.speaking import speaking
from mopeq_hub.fidelity.answers import Exam
from mopeq_hub.fidelity.logits import compare, write_logits
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.source import FolderSource


def main(job_path: Path) -> None:
    job = json.loads(job_path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    if job["role"] in ("load", "prepare"):
        loading = load(folder, job)[1] if job["role"] == "load" else prepare(folder, job["auto_class"])
        Path(job["result"]).write_text(json.dumps({"loading": loading}), "utf-8")
        return
    questions = read_questions(job["questions"], job["limit"])
    model, loading = load(folder, job)
    encoder = Encoder(folder)
    questions = questions.askable(encoder.takes_pictures)
    rows = encoder.rows(questions.items, with_answer=True, limit=questions.limit)
    if job["role"] == "original":
        result = write_logits(model, rows, Path(job["logits"]), _tell)
    else:
        result = compare(model, rows, Path(job["logits"]), _tell)
    result["questions"] = len(rows)
    if questions.scored:
        result["accuracy"] = Exam(encoder, questions.items, rows).accuracy(model, _tell)
    result["loading"] = loading
    Path(job["result"]).write_text(json.dumps(result), "utf-8")


def load(folder: Path, job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model as a user would load it, and what the loader said of every weight; then made float32 if asked for.

    On the CPU, unless the job has a `device_map`.
    """
    import transformers

    _quiet()
    auto_class = getattr(transformers, job["auto_class"])
    published = job["role"] == "published"
    options: dict[str, Any] = {"dtype": job["dtype"]} if job["dtype"] and not published else {}
    options |= {"device_map": job["device_map"]} if job.get("device_map") else {}
    safe = use_safetensors(folder)
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, use_safetensors=safe, **options)
    if published and job["dtype"] == "float32":
        _make_float32(model)
    speaking(model.eval())
    # Quantized modules keep their tensors in buffers, which the loader's own accounts may not cover.
    info_lists = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return model, {
        "check": "loaded",
        **info_lists,
        "widths": _widths(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _make_float32(model: Any) -> None:
    """Have a quantized model compute in float32. transformers refuses that, though these modules compute in any dtype;
    some vision parts go by what their config says."""
    torch.nn.Module.float(model)
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module, "dtype"):
            module.config.dtype = torch.float32


def prepare(folder: Path, auto_class: str) -> dict[str, Any]:
    """What `load` would say, from headers alone: the loader prepares its modules without weights, in no memory."""
    import transformers
    from transformers.quantizers.auto import AutoHfQuantizer

    _quiet()
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantizer = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(config)
        model.config.quantization_config = quantizer.quantization_config
        quantizer.validate_environment(device_map=None)
        quantizer.preprocess_model(model=model, dtype=model.dtype)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: info.shape for name, info in Checkpoint(FolderSource(folder)).tensors.items()}
    return {
        "check": "prepared",
        "missing_keys": sorted(set(expected) - set(found) - set(model.all_tied_weights_keys)),
        "unexpected_keys": sorted(set(found) - set(expected)),
        "mismatched_keys": sorted(name for name in set(found) & set(expected) if found[name] != expected[name]),
        "widths": _widths(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _quiet() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _widths(model: Any) -> dict[str, int]:
    return {name: int(module.bits) for name, module in model.named_modules() if hasattr(module, "qweight")}


def _tell(rows: int) -> None:
    """Say that so many rows are finished."""
    print(rows, flush=True)
