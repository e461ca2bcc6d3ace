"""Both models asked the same question: at the same time where they fit together, else one after the other, or the
original elsewhere, or the quantized one alone."""

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue
from threading import Lock, Thread

from answer import Answer, Settings, failure, gigabytes
from huggingface_hub import get_token
from machine import ON_ZERO_GPU, cores, memory_for_models
from model_process import ModelProcess
from provider import RemoteModel
from publication import Place, Publication

LOADED_PER_WEIGHT_BYTE = 1.2
"""What a loaded model takes for each byte of its files: weights, and the buffers of loading and answering."""

PROCESS_BYTES = 700_000_000
"""What Python, torch and transformers take before any model."""

Note = tuple[int, Answer]
ORIGINAL, QUANTIZED = 0, 1


class Way(Enum):
    """How a question is asked here."""

    BESIDE = "beside"
    IN_TURN = "in turn"
    ELSEWHERE = "elsewhere"
    ALONE = "alone"


@dataclass(frozen=True)
class Plan:
    """The way, and in words what is done and why."""

    way: Way
    words: str


class Comparison:
    """The two sides of a publication. keep: whether models stay loaded between questions."""

    def __init__(self, publication: Publication, keep: bool = not ON_ZERO_GPU) -> None:
        code = publication.model if publication.brings_code else None
        how = {"pictures": publication.takes_pictures, "trusted": publication.trusts_code}
        self.quantized = ModelProcess("quantized", publication.model, publication.auto_class, published=True, **how)
        self.original: ModelProcess | None = None
        if publication.original:
            self.original = ModelProcess("original", publication.original, publication.auto_class, code=code, **how)
        self._keep = keep
        self._turns = Lock()
        self._footprints: dict[str, int] = {}

    def plan(self) -> Plan:
        """How a question asked now would be answered."""
        plan = self._plan()
        if self._keep:
            return plan
        return Plan(plan.way, f"{plan.words} A GPU is lent for each question, so models are loaded anew each time.")

    def _plan(self) -> Plan:
        if self.original is None:
            return Plan(Way.ALONE, "The original is not part of this Space, so the quantized model answers alone.")
        first, second = self._footprint(self.original), self._footprint(self.quantized)
        together = "Each model runs in a process of its own, and both answer at the same time"
        if first is None or second is None:
            return Plan(Way.BESIDE, f"{together}.")
        sizes = ((self.original, first), (self.quantized, second))
        room = max(0, memory_for_models() + sum(size for model, size in sizes if model.loaded))
        if first + second <= room:
            return Plan(Way.BESIDE, f"{together}, so that they share the machine that their figures are of.")
        shortage = f"this machine has {gigabytes(room)} for models"
        if max(first, second) <= room:
            words = f"Together the models need about {gigabytes(first + second)} of memory and {shortage}"
            return Plan(Way.IN_TURN, f"{words}, so they are loaded and asked one after the other, which takes longer.")
        words = f"The original needs about {gigabytes(first)} of memory and {shortage}"
        if not self.original.place.link:
            return Plan(Way.ALONE, f"{words}, so the quantized model answers alone.")
        if not get_token():
            advice = "with a token in HF_TOKEN the original would be asked through Inference Providers"
            return Plan(Way.ALONE, f"{words}, so the quantized model answers alone; {advice}.")
        what = "other software on other machines runs it, so its speed cannot be compared with the quantized model's"
        return Plan(Way.ELSEWHERE, f"{words}, so the original is asked through Inference Providers: {what}.")

    def ask(self, picture: str | None, question: str, settings: Settings) -> Iterator[tuple[Answer, Answer]]:
        """(original's, quantized one's) answers as they grow; at the end both have ended."""
        plan = self.plan()
        latest = [Answer(), Answer()]
        try:
            for side, answer in _as_they_come(self._streams(plan, picture, question, settings)):
                latest[side] = answer
                yield latest[ORIGINAL], latest[QUANTIZED]
        finally:
            if not self._keep:
                self.stop()

    def stop(self) -> None:
        """End both processes."""
        for model in (self.original, self.quantized):
            if model:
                model.stop()

    def _footprint(self, model: ModelProcess) -> int | None:
        """`footprint` of a model, asked for until it is known."""
        if model.name not in self._footprints and (size := footprint(model.place)):
            self._footprints[model.name] = size
        return self._footprints.get(model.name)

    def _streams(
        self, plan: Plan, picture: str | None, question: str, settings: Settings
    ) -> list[tuple[list[int], Iterator[Note]]]:
        """What is to be heard at the same time, each with the sides that speak in it."""
        asked = (picture, question, settings)
        self.quantized.threads = cores()
        if self.original is None or plan.way is Way.ALONE:
            absent = iter([(ORIGINAL, failure(plan.words))])
            return [([ORIGINAL], absent), ([QUANTIZED], _by(QUANTIZED, self.quantized.ask(*asked)))]
        if plan.way is Way.IN_TURN:
            return [([ORIGINAL, QUANTIZED], self._in_turn(*asked))]
        original: ModelProcess | RemoteModel = self.original
        if plan.way is Way.ELSEWHERE:
            original = RemoteModel(self.original.name, self.original.place)
        else:
            self.original.threads = self.quantized.threads = max(1, cores() // 2)
        return [
            ([ORIGINAL], _by(ORIGINAL, original.ask(*asked))),
            ([QUANTIZED], _by(QUANTIZED, self.quantized.ask(*asked))),
        ]

    def _in_turn(self, picture: str | None, question: str, settings: Settings) -> Iterator[Note]:
        """One model's whole answer, then the other's; whichever is loaded goes first, so that it loads once less."""
        assert self.original
        models = (self.original, self.quantized)
        with self._turns:
            order = sorted((ORIGINAL, QUANTIZED), key=lambda side: not models[side].loaded)
            yield order[1], Answer(status="Waits until the other model has answered…")
            for side in order:
                models[1 - side].stop()
                models[side].threads = cores()
                yield from _by(side, models[side].ask(picture, question, settings))


def footprint(place: Place) -> int | None:
    """About how many bytes of memory a model takes when it answers; None where its size cannot be told."""
    weights = place.weights_bytes()
    return weights and int(weights * LOADED_PER_WEIGHT_BYTE) + PROCESS_BYTES


def _by(side: int, answers: Iterator[Answer]) -> Iterator[Note]:
    return ((side, answer) for answer in answers)


def _as_they_come(streams: list[tuple[list[int], Iterator[Note]]]) -> Iterator[Note]:
    """Whatever any stream says next, until all have ended."""
    heard: SimpleQueue[Note | None] = SimpleQueue()
    for sides, stream in streams:
        # A thread each also hears an answer to its end where nobody listens any more.
        Thread(target=_note_down, args=(sides, stream, heard), daemon=True).start()
    speaking = len(streams)
    while speaking:
        note = heard.get()
        if note is None:
            speaking -= 1
        else:
            yield note


def _note_down(sides: list[int], stream: Iterator[Note], heard: "SimpleQueue[Note | None]") -> None:
    try:
        for note in stream:
            heard.put(note)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        for side in sides:
            heard.put((side, failure(f"Something went wrong here: {error}. Ask again.")))
    finally:
        heard.put(None)
