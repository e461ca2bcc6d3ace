"""Blind mode: which side is which stays hidden until the vote, and nothing that tells is shown before."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from answer import Answer, Settings

ORIGINAL_LEFT = ("original", "quantized")
QUANTIZED_LEFT = ("quantized", "original")


@dataclass(frozen=True)
class Round:
    """A question that was answered blind. sides: what is left and what is right; figures: of both, as shown later."""

    question: str
    sides: tuple[str, str]
    figures: tuple[str, str]


def shuffled() -> tuple[str, str]:
    """What is left and what is right, by chance."""
    return secrets.choice((ORIGINAL_LEFT, QUANTIZED_LEFT))


def in_step(left: Answer, right: Answer) -> tuple[str, str]:
    """Both texts as far as the slower of those still speaking has come, so that no speed shows."""
    speaking = [answer.text for answer in (left, right) if not answer.ended]
    if not speaking:
        return left.text, right.text
    words = min(len(text.split()) for text in speaking)
    return _first_words(left.text, words), _first_words(right.text, words)


def digest(picture: str | None, question: str, settings: Settings) -> str:
    """What a vote keeps of its question: enough to tell that two votes are on the same one."""
    told = hashlib.sha256(repr((question, settings)).encode())
    if picture:
        told.update(Path(picture).read_bytes())
    return told.hexdigest()


def _first_words(text: str, count: int) -> str:
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    return text[: ends[count - 1]] if 0 < count <= len(ends) else text if count else ""
