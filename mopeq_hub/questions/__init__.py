"""The inputs of the comparison: questions, most with a picture, each with a reference answer, one JSON object a line.

`{"image": path or null, "question": ..., "answer": ..., ...}`, pictures relative to the file. Without a file of the
user's the
bundled set is taken: pictures drawn for this purpose, and prompts and answers written for it.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from mopeq_hub.errors import MopeqError, UsageError

BUNDLED = Path(__file__).parent / "bundled" / "questions.jsonl"
DEFAULT_TOKENS = 16_384
"""Tokens of questions and answers that fidelity is measured on unless the user says otherwise: what the bundled set
comes to with the vision towers that take most."""


@dataclass(frozen=True)
class Question:
    """One prompt: an optional picture, the text, and the answer it is compared on."""

    image: Path | None
    text: str
    answer: str


@dataclass(frozen=True)
class Questions:
    """A set of questions. `name` is what reports call it; `digest` is over texts and pictures; `path` is the user's
    file, None of the bundled set; `limit` is how many tokens of it are taken, from the first question, 0 for all."""

    name: str
    digest: str
    items: tuple[Question, ...]
    path: Path | None
    limit: int

    @property
    def scored(self) -> bool:
        """Whether answers count: the bundled ones are sentences, which nobody repeats to the letter."""
        return self.path is not None

    def askable(self, pictures: bool) -> "Questions":
        """Those that a model can be asked that takes pictures, or none. Raises MopeqError where none is left."""
        items = self.items if pictures else tuple(item for item in self.items if item.image is None)
        if not items:
            raise MopeqError(
                f"all questions of {self.name} are about pictures, and the model takes none", "add some of text alone"
            )
        return replace(self, items=items)


def read_questions(path: str | Path | None, limit: int = DEFAULT_TOKENS) -> Questions:
    """The questions in `path`, or the bundled ones where it is None. Raises MopeqError, naming file and line."""
    if limit < 0:
        raise UsageError(f"--fidelity-tokens {limit} is negative", "give how many, or 0 for all")
    path = Path(path) if path else None
    source = path or BUNDLED
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"the questions file {source} cannot be read: {reason}", "give a file of JSON lines") from None
    items = tuple(_question(line, source, number) for number, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise MopeqError(f"the questions file {source.name} holds no question", "give one JSON object a line")
    whole = hashlib.sha256()
    for item in items:
        picture = hashlib.sha256(item.image.read_bytes()).hexdigest() if item.image else ""
        whole.update(json.dumps([picture, item.text, item.answer]).encode())
    return Questions(source.name if path else "bundled", whole.hexdigest(), items, path, limit)


def _question(line: str, source: Path, number: int) -> Question:
    where = f"line {number} of {source.name}"
    try:
        entry = json.loads(line)
        image, text, answer = entry.get("image"), entry["question"], entry["answer"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise MopeqError(f"{where} is not a question", 'write {"image": ..., "question": ..., "answer": ...}') from None
    if not (isinstance(text, str) and isinstance(answer, str) and (image is None or isinstance(image, str))):
        raise MopeqError(
            f"{where} holds something other than text", 'write {"image": ..., "question": ..., "answer": ...}'
        )
    picture = source.parent / image if image else None
    if picture and not picture.is_file():
        raise MopeqError(f"{where} names the picture {image}, which is not there", "put it beside the questions file")
    return Question(picture, text, answer)
