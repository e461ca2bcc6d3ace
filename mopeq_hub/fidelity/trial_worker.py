"""Bit maps tried on the original in memory: a process of its own, started by `mopeq_hub.processes`.

The original's logits on the questions are kept; then, for each map, what its codes and scales stand for takes the place
of the original's weights, and the logits are compared. That is what the published form computes but for the rounding of
its activations, at a fraction of the time that quantizing and loading it would take. What a map gives is noted at once,
a line of JSON each. Progress goes to standard output, one number of finished maps a line.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.calibration import Rounded, load
from mopeq_hub.experts import Matrix
from mopeq_hub.fidelity.answers import Exam
from mopeq_hub.fidelity.logits import compare, write_logits
from mopeq_hub.fidelity.stages import place_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.processes import read_job
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder, Row
from mopeq_hub.records import append


def main(job_path: Path) -> None:
    job = read_job(job_path)
    model = open_model(job["folder"], named=False, trust_remote_code=job["trusted"])
    questions = read_questions(Path(job["questions"]) if job["questions"] else None, job["limit"])
    encoder = Encoder(Path(job["folder"]), job["trusted"])
    questions = questions.askable(encoder.takes_pictures)
    rows = encoder.rows(questions.items, with_answer=True, limit=questions.limit)
    bench = Bench(model, load(job), rows, job, Path(job["maps"]).parent)
    exam = Exam(encoder, questions.items, rows) if job["accuracy"] else None
    maps = json.loads(Path(job["maps"]).read_text("utf-8"))
    for key, widths in maps.items():
        begun = time.monotonic()
        found = bench.measure(widths)
        found["seconds"] = time.monotonic() - begun
        if exam:
            found["accuracy"] = exam.accuracy(bench.live)
        append(Path(job["notes"]), {"key": key, **found})
        print(1, flush=True)
    Path(job["result"]).write_text(json.dumps({"maps": len(maps)}), "utf-8")


class Changing:
    """The `live` original, whose weights are exchanged from map to map."""

    def __init__(self, model: Model, live: Any, job: dict[str, Any]) -> None:
        self._model, self.live = model, live
        self._matrices = {matrix.name: matrix for matrix in model.layout.matrices}
        self._rounded = Rounded(model, job["group_size"], job["symmetric"], job["search"])
        self._now: dict[str, int] = {}

    def take(self, widths: dict[str, int]) -> None:
        """Give matrices these bits by name; those not named have their original weights."""
        for name in {*widths, *self._now}:
            bits = widths.get(name, 16)
            if bits != self._now.get(name, 16):
                self._put(self._matrices[name], bits)
        self._now = {name: bits for name, bits in widths.items() if bits != 16}

    def _put(self, matrix: Matrix, bits: int) -> None:
        """Give a matrix of the live model so many bits, or its original weight."""
        place = place_of(matrix, self._model.layout)
        part = place.part(self.live.get_parameter(place.parameter).data)
        if bits == 16:
            part.copy_(torch.from_numpy(matrix.read(self._model.checkpoint).float32()))
        else:
            part.copy_(self._rounded.weight(matrix, bits))


class Bench(Changing):
    """The same, measured against what it gave before anything was exchanged."""

    def __init__(self, model: Model, live: Any, rows: list[Row], job: dict[str, Any], scratch: Path) -> None:
        """scratch: a folder for the original's logits, which may be larger than memory."""
        super().__init__(model, live, job)
        self._rows, self._original = rows, scratch / "logits.npy"
        write_logits(live, rows, self._original)

    def measure(self, widths: dict[str, int]) -> dict[str, Any]:
        """The figures of `Comparison` with these bits for matrices by name; those not named stay as they are."""
        self.take(widths)
        return compare(self.live, self._rows, self._original)
