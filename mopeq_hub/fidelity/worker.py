"""One model measured in a process of its own: `python -m mopeq_hub.fidelity.worker JOB.json`.

auto-round's loader changes transformers for the whole process, so original and published model must never share one.
The original's worker writes the logits of every answer token to a file; the published model's worker reads them and
compares. The job is a JSON file, the result another; progress goes to standard output, one number of finished rows a
line.
"""

import json
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub.fidelity.inputs import Encoder, Row, batches
from mopeq_hub.fidelity.questions import read_questions


def main(job_path: Path) -> None:
    job = json.loads(job_path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    if job["role"] == "load":
        _, loading = load(Path(job["folder"]), job)
        Path(job["result"]).write_text(json.dumps({"loading": loading}), "utf-8")
        return
    questions = read_questions(Path(job["questions"]) if job["questions"] else None)
    folder = Path(job["folder"])
    model, loading = load(folder, job)
    encoder = Encoder(folder)
    rows = encoder.rows(list(questions.items), with_answer=True)
    if job["role"] == "original":
        result = write_logits(model, rows, Path(job["logits"]))
    else:
        result = compare(model, rows, Path(job["logits"]))
    if questions.scored:
        asked = encoder.rows(list(questions.items), with_answer=False)
        longest = max(row.length - row.prompt for row in rows)
        answers = dict(generate(model, encoder, asked, longest))
        hits = [_same(answers[number], item.answer) for number, item in enumerate(questions.items)]
        result["accuracy"] = sum(hits) / len(hits)
    result["loading"] = loading
    Path(job["result"]).write_text(json.dumps(result), "utf-8")


def load(folder: Path, job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model as a user would load it, and what the loader said of every weight."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": job["dtype"]} if job["dtype"] else {}
    if job["layers"] is not None:
        options["config"] = first_layers(transformers.AutoConfig.from_pretrained(folder), job["layers"])
    auto_class = getattr(transformers, job["auto_class"])
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **options)
    model.eval()
    widths = {name: int(module.bits) for name, module in model.named_modules() if hasattr(module, "qweight")}
    # Quantized modules keep their tensors in buffers, which the loader's own accounts may not cover.
    info_lists = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return model, {**info_lists, "widths": widths, "dtype": str(model.dtype).removeprefix("torch.")}


def first_layers(config: Any, count: int) -> Any:
    """The config of the same model cut after its first `count` decoder layers."""
    text = config.get_text_config()
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    return config


def answer_logits(model: Any, rows: list[Row]) -> Iterator[tuple[Row, torch.Tensor, torch.Tensor]]:
    """For each row, the float32 logits [answer tokens, vocabulary] that predict its answer, and the answer's ids."""
    # A whole vocabulary for every token of the prompt would be most of the memory, and none of it is looked at.
    sparing = "logits_to_keep" in signature(model.forward).parameters
    for part, inputs in batches(rows):
        kept = part[0].length - part[0].prompt + 1
        with torch.inference_mode():
            options = {"logits_to_keep": kept} if sparing else {}
            logits = model(**_cast(inputs, model.dtype), use_cache=False, **options).logits
        for position, row in enumerate(part):
            ids = row.inputs["input_ids"][0, row.prompt :]
            yield row, logits[position, -kept:-1].float(), ids
        print(len(part), flush=True)


def write_logits(model: Any, rows: list[Row], path: Path) -> dict[str, Any]:
    """Keep the original's answer logits in a .npy file [answer tokens, vocabulary], rows in the questions' order."""
    starts = _starts(rows)
    kept: np.memmap | None = None
    losses = np.zeros(starts[-1])
    for row, logits, ids in answer_logits(model, rows):
        if kept is None:
            kept = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float32, shape=(int(starts[-1]), logits.shape[-1])
            )
        place = slice(starts[row.number], starts[row.number + 1])
        kept[place] = logits.numpy()
        losses[place] = torch.nn.functional.cross_entropy(logits, ids, reduction="none").numpy()
    assert kept is not None
    kept.flush()
    return {"tokens": int(starts[-1]), "loss": float(losses.mean())}


def compare(model: Any, rows: list[Row], path: Path) -> dict[str, Any]:
    """KL(original || published) per answer token in nats, agreement of the most likely token, mean loss of the
    answers."""
    starts = _starts(rows)
    original = np.load(path, mmap_mode="r")
    if original.shape[0] != starts[-1]:
        raise ValueError("the published processor makes other tokens of the same questions than the original's")
    divergences, agreements, losses = (np.zeros(starts[-1]) for _ in range(3))
    for row, logits, ids in answer_logits(model, rows):
        place = slice(starts[row.number], starts[row.number + 1])
        ours = torch.log_softmax(logits.double(), -1)
        theirs = torch.log_softmax(torch.from_numpy(np.array(original[place])).double(), -1)
        divergences[place] = (theirs.exp() * (theirs - ours)).sum(-1).numpy()
        agreements[place] = (theirs.argmax(-1) == ours.argmax(-1)).numpy()
        losses[place] = torch.nn.functional.cross_entropy(logits, ids, reduction="none").numpy()
    return {
        "tokens": int(starts[-1]),
        "loss": float(losses.mean()),
        "kl_mean": float(divergences.mean()),
        "kl_p99": float(np.quantile(divergences, 0.99)),
        "top1_agreement": float(agreements.mean()),
    }


def generate(model: Any, encoder: Encoder, rows: list[Row], longest: int) -> Iterator[tuple[int, str]]:
    """Greedy answers by question number; `longest` is the reference answers' greatest length in tokens."""
    for part, inputs in batches(rows):
        with torch.inference_mode():
            ids = model.generate(**_cast(inputs, model.dtype), max_new_tokens=longest + 8, do_sample=False)
        for position, row in enumerate(part):
            yield row.number, encoder.decode(ids[position, row.length :])
        print(len(part), flush=True)


def _starts(rows: list[Row]) -> np.ndarray:
    """Where each row's answer tokens begin among all answer tokens, and the total at the end."""
    return np.concatenate([[0], np.cumsum([row.length - row.prompt for row in rows])])


def _cast(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _same(answer: str, reference: str) -> bool:
    return " ".join(answer.split()).casefold() == " ".join(reference.split()).casefold()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
