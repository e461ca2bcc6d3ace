"""How many questions a model answers as their reference does: greedily, compared without regard to case and spaces."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mopeq_hub.questions import Question
from mopeq_hub.questions.inputs import Encoder, Row, batches, to_generate

_SPARE_TOKENS = 8
"""That an answer may have more than the longest reference."""


class Exam:
    """The questions of `rows`, which hold their answers too, ready to be asked."""

    def __init__(self, encoder: Encoder, questions: Sequence[Question], rows: list[Row]) -> None:
        self._encoder, self._questions = encoder, questions[: len(rows)]
        self._asked = encoder.rows(self._questions, with_answer=False)
        self._longest = max(row.length - row.prompt for row in rows) + _SPARE_TOKENS

    def accuracy(self, model: Any, told: Callable[[int], None] = lambda rows: None) -> float:
        """The share of right answers; `told` is given the number of answers as they come."""
        answers = dict(self._answers(model, told))
        hits = [_same(answers[number], question.answer) for number, question in enumerate(self._questions)]
        return sum(hits) / len(hits)

    def _answers(self, model: Any, told: Callable[[int], None]) -> Iterator[tuple[int, str]]:
        """Answers by question number."""
        for row, text in answers(model, self._encoder, self._asked, max_new_tokens=self._longest, do_sample=False):
            yield row.number, text
            told(1)


def answers(model: Any, encoder: Encoder, rows: list[Row], **options: Any) -> Iterator[tuple[Row, str]]:
    """Each row with the text that the model goes on with, in the order in which they are batched; `options` are those
    of `generate`."""
    for part, inputs in batches(rows):
        with torch.inference_mode():
            ids = model.generate(**to_generate(inputs, model), **options)
        for position, row in enumerate(part):
            yield row, encoder.decode(ids[position, row.length :])


def _same(answer: str, reference: str) -> bool:
    return " ".join(answer.split()).casefold() == " ".join(reference.split()).casefold()
