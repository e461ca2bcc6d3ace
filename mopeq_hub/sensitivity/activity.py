"""What the experts do while a model answers: a process of its own, started by `mopeq_hub.processes`.

It loads the original, makes groups of rows (`rows_of`), runs them, and leaves what the signal that asked collects of
them. Progress goes to standard output, one number of finished tokens a line.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from mopeq_hub.calibration import load
from mopeq_hub.model import Model, open_model
from mopeq_hub.processes import read_job
from mopeq_hub.questions import Question, read_questions
from mopeq_hub.questions.inputs import Encoder, Row, batches, to_generate
from mopeq_hub.questions.made import invented, recombined
from mopeq_hub.sensitivity import fisher, frequency


class Collector(Protocol):
    """What a signal keeps of the rows that it is shown."""

    def begin(self) -> None:
        """A group of rows begins."""

    def rows_at_once(self, rows: list[Row]) -> int:
        """Most of these rows in a batch."""
        ...

    def run(self, part: list[Row], inputs: dict[str, torch.Tensor]) -> None:
        """Run a batch of the group, its collated inputs on the CPU."""

    def result(self) -> dict[str, Any]:
        """By layer `experts`, one number each, or by matrix `costs`, one for each width."""
        ...


COLLECTORS: dict[str, Callable[[Model, Any, dict[str, Any]], Collector]] = {
    "fisher": fisher.Collector,
    "frequency": frequency.Collector,
}
ANSWER_TOKENS = 32
"""Most tokens of an answer that the model gives."""
_FIRST, _MOST = 64, 1024
"""Made questions that are answered together, at first and at most: the more, the more of them have the same length. Of
the last ones those beyond the tokens wanted are not used."""


@dataclass(frozen=True)
class Group:
    """Rows that count together as much as those of any other group."""

    name: str
    rows: list[Row]


def main(job_path: Path) -> None:
    job = read_job(job_path)
    model = open_model(job["folder"], named=False, trust_remote_code=job["trusted"])
    live = load(job)
    if torch.cuda.is_available():
        live.to("cuda")
    live.requires_grad_(False)
    encoder = Encoder(Path(job["folder"]), job["trusted"])
    collector = COLLECTORS[job["signal"]](model, live, job)
    with tempfile.TemporaryDirectory() as scratch:
        groups = rows_of(model, live, encoder, job, Path(scratch))
    for group in groups:
        collector.begin()
        for part, inputs in batches(group.rows, collector.rows_at_once(group.rows)):
            collector.run(part, inputs)
            print(_tokens(part), flush=True)
    described = [{"name": group.name, "rows": len(group.rows), "tokens": _tokens(group.rows)} for group in groups]
    Path(job["result"]).write_text(json.dumps({"groups": described, **collector.result()}), "utf-8")


def rows_of(model: Model, live: Any, encoder: Encoder, job: dict[str, Any], scratch: Path) -> list[Group]:
    """What the model is run on: `own` rows, or those of calibration questions and as many recombined from them.

    All together they have about `tokens` tokens.
    """
    if job["inputs"] == "own":
        questions = invented(encoder.tokenizer, scratch, model.takes_pictures, job["seed"])
        return [Group("own", _answered(live, encoder, questions, job["tokens"]))]
    asked = read_questions(Path(job["calibration"]) if job["calibration"] else None).askable(model.takes_pictures)
    given = encoder.rows(asked.items, with_answer=True, limit=job["tokens"] // 2)
    made = _answered(live, encoder, recombined(asked.items, scratch, job["seed"]), job["tokens"] - _tokens(given))
    return [Group("calibration", given), Group("recombined", made)]


def _answered(live: Any, encoder: Encoder, questions: Iterator[Question], tokens: int) -> list[Row]:
    """Rows of questions with the model's own greedy answers, until they have that many tokens."""
    rows: list[Row] = []
    left, count = tokens, _FIRST
    while left > 0:
        for row in _answers(live, encoder.rows(list(islice(questions, count)), with_answer=False)):
            if left > 0:
                rows.append(Row(len(rows), row.inputs, row.prompt))
                left -= row.tokens
        # As many as are needed if they have the tokens of those before.
        count = min(_MOST, math.ceil(left * len(rows) / (tokens - left)))
    return rows


def _answers(live: Any, asked: list[Row]) -> Iterable[Row]:
    """The rows with the answers, in order."""
    answered: dict[int, Row] = {}
    ends = live.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    for part, inputs in batches(asked):
        given = to_generate(inputs, live)
        with torch.inference_mode():
            made = live.generate(**given, max_new_tokens=ANSWER_TOKENS, do_sample=False).cpu()
        for row, ids in zip(part, made, strict=True):
            answered[row.number] = row.answered(_until(ids[row.length :].tolist(), stops))
    return [answered[row.number] for row in asked]


def _until(ids: list[int], stops: set[int | None]) -> list[int]:
    """The answer up to its end, which belongs to it."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def _tokens(rows: list[Row]) -> int:
    return sum(row.tokens for row in rows)
