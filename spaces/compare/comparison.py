"""Both models asked the same question at the same time, each in its own process."""

import sys
import traceback
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

from machine import available_memory
from model_process import Answer, ModelProcess, gigabytes
from publication import Place, Publication

LOADED_PER_WEIGHT_BYTE = 1.2
"""What a loaded model takes for each byte of its files: weights, and the buffers of loading and answering."""

PROCESS_BYTES = 700_000_000
"""What Python, torch and transformers take before any model."""

Note = tuple[int, Answer | None]


class Comparison:
    """The two sides of a publication. The quantized one answers alone where the original is absent or does not fit."""

    def __init__(self, publication: Publication) -> None:
        self.quantized = ModelProcess("quantized", publication.model, publication.auto_class)
        self.original = None
        if publication.original:
            self.original = ModelProcess("original", publication.original, publication.auto_class)

    def ask(self, picture: str | None, question: str, length: int) -> Iterator[tuple[Answer, Answer]]:
        """(original's, quantized one's) answers as they grow."""
        absence = self._why_no_original()
        latest = [Answer(status=absence), Answer()]
        asked = [(1, self.quantized)]
        if self.original and not absence:
            asked.append((0, self.original))
        for side, answer in _as_they_come({side: model.ask(picture, question, length) for side, model in asked}):
            latest[side] = answer
            yield latest[0], latest[1]

    def _why_no_original(self) -> str:
        """In words why the original does not answer here; empty when it does."""
        if self.original is None:
            return "The original is not part of this Space."
        needed = footprint(self.original.place)
        if self.original.loaded or needed is None:
            return ""
        beside = 0 if self.quantized.loaded else footprint(self.quantized.place) or 0
        left = max(0, available_memory() - beside)
        if needed <= left:
            return ""
        return (
            f"The original needs about {gigabytes(needed)} of memory and this machine has {gigabytes(left)} left "
            "beside the quantized model, so the quantized model answers alone."
        )


def footprint(place: Place) -> int | None:
    """About how many bytes of memory a model takes when it answers; None where its size cannot be told."""
    weights = place.weights_bytes()
    return weights and int(weights * LOADED_PER_WEIGHT_BYTE) + PROCESS_BYTES


def _as_they_come(sides: dict[int, Iterator[Answer]]) -> Iterator[tuple[int, Answer]]:
    """Whatever any side says next, until all have ended."""
    notes: SimpleQueue[Note] = SimpleQueue()
    for side, answers in sides.items():
        Thread(target=_note_down, args=(side, answers, notes), daemon=True).start()
    speaking = len(sides)
    while speaking:
        side, answer = notes.get()
        if answer is None:
            speaking -= 1
        else:
            yield side, answer


def _note_down(side: int, answers: Iterator[Answer], notes: "SimpleQueue[Note]") -> None:
    try:
        for answer in answers:
            notes.put((side, answer))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        notes.put((side, Answer(status=f"Something went wrong here: {error}. Ask again.")))
    finally:
        notes.put((side, None))
