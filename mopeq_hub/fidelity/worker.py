"""One model measured in a process of its own, started by `mopeq_hub.processes`.

auto-round's loader changes transformers for the whole process, so original and published model must never share one.
The original's worker writes the logits of every answer token to a file; the published model's worker reads them and
compares. The job is a JSON file, the result another; progress goes to standard output, one number of finished rows a
line.
"""

import json
from pathlib import Path
from typing import Any

from mopeq_hub.checkpoint import Checkpoint, use_safetensors
from mopeq_hub.families.live import on_meta
from mopeq_hub.families.speaking import speaking
from mopeq_hub.fidelity.answers import Exam
from mopeq_hub.fidelity.logits import compare, write_logits
from mopeq_hub.fidelity.speed import go_over_to_the_runtime
from mopeq_hub.processes import read_job
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.source import FolderSource

_TROUBLES = ("missing_keys", "unexpected_keys", "mismatched_keys")


def main(job_path: Path) -> None:
    job = read_job(job_path)
    folder = Path(job["folder"])
    if job["role"] == "prepare":
        Path(job["result"]).write_text(json.dumps({"loading": prepare(folder, job)}), "utf-8")
        return
    model, loading = load(folder, job)
    encoder = Encoder(folder, job["trusted"])
    questions = read_questions(job["questions"], job["limit"]).askable(encoder.takes_pictures)
    if job["role"] != "original" and not any(loading[trouble] for trouble in _TROUBLES):
        # What did not load whole computes nothing; whoever asked is told what is missing.
        [asked] = encoder.rows(questions.items[:1], with_answer=False)
        loading["speed"] = go_over_to_the_runtime(model, asked, job["dtype"] == "float32", job["timed"])
        loading["dtype"] = _dtype(model)
    if job["role"] == "load":
        Path(job["result"]).write_text(json.dumps({"loading": loading}), "utf-8")
        return
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
    """The model as a user would load it, and what the loader said of every weight.

    On the CPU, unless the job has a `device_map`.
    """
    import transformers

    _quiet()
    auto_class = getattr(transformers, job["auto_class"])
    original = job["role"] == "original"
    options: dict[str, Any] = {"dtype": job["dtype"]} if job["dtype"] and original else {}
    options |= {"device_map": job["device_map"]} if job.get("device_map") else {}
    options |= {"use_safetensors": use_safetensors(folder), "trust_remote_code": job.get("trusted", False)}
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    speaking(model.eval())
    # Quantized modules keep their tensors in buffers, which the loader's own accounts may not cover.
    info_lists = {kind: sorted(map(str, info[kind])) for kind in _TROUBLES}
    return model, {
        "check": "loaded",
        **info_lists,
        "widths": _widths(model),
        "dtype": _dtype(model),
    }


def prepare(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What `load` would say, from headers alone: the loader prepares its modules without weights, in no memory."""
    import transformers
    from transformers.quantizers.auto import AutoHfQuantizer

    _quiet()
    auto_class, trusted = getattr(transformers, job["auto_class"]), job["trusted"]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    quantizer = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
    with on_meta():
        model = auto_class.from_config(config, trust_remote_code=trusted)
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
        "dtype": _dtype(model),
    }


def _quiet() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _widths(model: Any) -> dict[str, int]:
    return {name: int(module.bits) for name, module in model.named_modules() if hasattr(module, "qweight")}


def _tell(rows: int) -> None:
    """Say that so many rows are finished."""
    print(rows, flush=True)
