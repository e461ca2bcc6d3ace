"""A model of this project's as lmms-eval asks it: chat messages with pictures in, text out.

Imported in a worker's process alone: lmms-eval is optional, and it and torch take seconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from mopeq_hub.fidelity.answers import answers
from mopeq_hub.questions.inputs import Encoder, Row

MOST_TOKENS = 1024
"""Of an answer, where a task names no number."""
_AT_ONCE = 64
"""Questions whose pictures are held in memory together."""


class Asked(lmms):
    """A loaded model with its encoder, under lmms-eval's interface for chat models.

    `begun` says whether it was asked anything: what fails before that is not the model's doing.
    """

    is_simple = False

    def __init__(self, model: Any, encoder: Encoder) -> None:
        super().__init__()
        self._model, self._encoder = model, encoder
        self.begun = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request, whose arguments are context, messages of a document, options, document, task and
        split, in lmms-eval's order. Raises NotImplementedError where a document has more than text and pictures."""
        self.begun = True
        found: dict[int, str] = {}
        for options, numbers in _alike(requests):
            for start in range(0, len(numbers), _AT_ONCE):
                rows = [self._row(number, requests[number]) for number in numbers[start : start + _AT_ONCE]]
                for row, text in answers(self._model, self._encoder, rows, **_generation(options)):
                    found[row.number] = _cut(text, options.get("until"))
        return [found[number] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks that compare likelihoods are not supported, only those that generate")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported")

    def clean(self) -> None:
        """The model stays: the next task follows."""

    def _row(self, number: int, request: Instance) -> Row:
        _, messages_of, _, document, task, split = request.args
        return self._encoder.asked(number, *_opened(messages_of(self.task_dict[task][split][document])))


def _alike(requests: Sequence[Instance]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """The numbers of requests that are answered by the same options, with those."""
    groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for number, request in enumerate(requests):
        options = dict(request.args[2])
        groups.setdefault(repr(sorted(options.items())), (options, []))[1].append(number)
    yield from groups.values()


def _generation(options: Mapping[str, Any]) -> dict[str, Any]:
    """A task's options as `generate` takes them: greedy, unless the task asks for a temperature."""
    chosen: dict[str, Any] = {"max_new_tokens": int(options.get("max_new_tokens") or MOST_TOKENS), "do_sample": False}
    if (options.get("num_beams") or 1) > 1:
        chosen["num_beams"] = options["num_beams"]
    if (options.get("temperature") or 0) > 0:
        chosen |= {"do_sample": True, "temperature": options["temperature"]}
        chosen |= {"top_p": options["top_p"]} if options.get("top_p") else {}
    return chosen


def _cut(text: str, stops: Any) -> str:
    """What comes before the first of the texts at which a task ends an answer."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def _opened(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """lmms-eval's messages as chat templates take them, and their pictures in order, as PIL images in RGB."""
    from PIL import Image

    told: list[dict[str, Any]] = []
    pictures: list[Any] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        told.append({"role": message["role"], "content": []})
        for part in parts:
            if part["type"] == "image":
                given: Any = part.get("url", part.get("image"))
                pictures.append((given if isinstance(given, Image.Image) else Image.open(given)).convert("RGB"))
                told[-1]["content"].append({"type": "image"})
            elif part["type"] == "text":
                told[-1]["content"].append({"type": "text", "text": part["text"]})
            else:
                raise NotImplementedError(f"questions with {part['type']} are not supported")
    return told, pictures
