"""What is asked of a model and what it answers, whoever runs it: a process of this Space or an inference provider."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How an answer is made: at most `length` tokens; at temperature 0 the likeliest ones, else drawn with `seed`."""

    length: int = 64
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer so far: its text, and in words what is going on, what it took, or what went wrong.

    ended: nothing more will come. failed: it ended without a whole answer.
    """

    text: str = ""
    status: str = ""
    ended: bool = False
    failed: bool = False


def failure(status: str, text: str = "") -> Answer:
    """The end of an answer that is not whole."""
    return Answer(text, status, ended=True, failed=True)


def figures(first_token_seconds: float, tokens_per_second: float | None, memory: str) -> str:
    """What an answer took, in one line."""
    rate = f"{tokens_per_second:.1f} tokens/s" if tokens_per_second else "one token"
    return " · ".join([f"{first_token_seconds:.2f} s to first token", rate, memory])


def gigabytes(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB"
