"""Questions that nobody wrote, for signals that run a model: invented without any data, or recombined from others.

A handful of questions says little of the experts that it does not reach, and much of those that it happens to. Invented
ones are words drawn at random from the model's own vocabulary, every second one about a synthetic picture. Recombined
ones walk from word to word as the given questions do (a Markov chain of order 1) and quilt their pictures. Neither has
an answer: the model gives it, and is measured on what it says itself.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mopeq_hub.questions import Question

if TYPE_CHECKING:
    from PIL import Image

_WORDS = (3, 12)
"""Least and most words of an invented question."""
_SCALES = (2, 4, 8, 16, 64)
"""Patches along each side of the layers that a synthetic picture is made of."""
_SIDE = 336
"""Pixels along each side of a synthetic picture; processors make theirs of it."""
_SPLITS = (0.33, 0.5, 0.67)
_START, _END = "\x00start", "\x00end"


def invented(tokenizer: Any, folder: Path, pictures: bool, seed: int) -> Iterator[Question]:
    """Endless questions of random words; pictures are written to `folder`, for every second one if `pictures`."""
    rng = random.Random(seed)
    special = set(tokenizer.all_special_tokens)
    words = sorted(token for token in tokenizer.get_vocab() if token not in special and not token.startswith("<"))
    number = 0
    while True:
        drawn = rng.choices(words, k=rng.randint(*_WORDS))
        text = tokenizer.convert_tokens_to_string(drawn).strip()
        number += 1
        if not text:
            continue
        image = None
        if pictures and number % 2 == 0:
            image = folder / f"{number}.png"
            synthetic_picture(seed + number).save(image)
        yield Question(image, text, "")


def synthetic_picture(seed: int) -> "Image.Image":
    """Coloured patches of several sizes, smooth or sharp, laid over each other."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    whole = np.zeros((_SIDE, _SIDE, 3))
    how = Image.Resampling.BICUBIC if seed % 2 else Image.Resampling.NEAREST
    for patches in _SCALES:
        colours = rng.integers(0, 256, (patches, patches, 3), np.uint8)
        layer = Image.fromarray(colours).resize((_SIDE, _SIDE), how)
        whole += np.asarray(layer, float) * rng.uniform()
    whole = (whole - whole.min()) / max(float(np.ptp(whole)), 1e-9) * 255
    return Image.fromarray(whole.astype(np.uint8))


def recombined(questions: Sequence[Question], folder: Path, seed: int) -> Iterator[Question]:
    """Endless questions made of parts of these, with and without pictures as often as they; pictures are written to
    `folder`."""
    rng = random.Random(seed)
    kinds = [[item for item in questions if (item.image is not None) == pictured] for pictured in (True, False)]
    followers = [_followers(items) for items in kinds]
    longest = max(len(item.text.split()) for item in questions)
    number = 0
    while True:
        kind = 0 if rng.randrange(len(questions)) < len(kinds[0]) else 1
        text = _walk(followers[kind], longest, rng)
        image = None
        if kind == 0:
            number += 1
            image = folder / f"{number}.png"
            _quilt(kinds[0], rng).save(image)
        yield Question(image, text, "")


def _followers(questions: Sequence[Question]) -> dict[str, list[str]]:
    """What follows each word, as often as it does."""
    following: dict[str, list[str]] = {}
    for item in questions:
        words = [_START, *item.text.split(), _END]
        for word, after in itertools.pairwise(words):
            following.setdefault(word, []).append(after)
    return following


def _walk(following: dict[str, list[str]], longest: int, rng: random.Random) -> str:
    """A walk from start to end of no more words than the longest question; cut there after a few tries."""
    words: list[str] = []
    for _ in range(8):
        words = [rng.choice(following[_START])]
        while len(words) <= longest and words[-1] != _END:
            words.append(rng.choice(following[words[-1]]))
        if words[-1] == _END:
            break
    return " ".join(word for word in words[:longest] if word != _END)


def _quilt(questions: Sequence[Question], rng: random.Random) -> "Image.Image":
    """Four quarters of four pictures, in the size of the first."""
    from PIL import Image

    whole, *others = (Image.open(str(rng.choice(questions).image)).convert("RGB") for _ in range(4))
    width, height = whole.size
    column, row = (int(side * rng.choice(_SPLITS)) for side in whole.size)
    quarters = [(column, 0, width, row), (0, row, column, height), (column, row, width, height)]
    for picture, box in zip(others, quarters, strict=True):
        if box[0] < box[2] and box[1] < box[3]:
            whole.paste(picture.resize((width, height)).crop(box), box)
    return whole
