"""More questions of the kinds that the bundled models were trained on, so that bit maps can be told apart.

A few hundred do not do: one question that a bit map fails may hold half of the KL divergence of all of them. Pictures
show shapes in the nine cells of a grid; facts are made up, the same for every seed as the models know them by heart.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw

SEED = 77
"""Of the questions that figures are given for; no model was trained on them or looked at them."""
_CELL = 16
_COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "black": (20, 20, 20),
    "cyan": (40, 200, 210),
}
_SHAPES = ("circle", "square", "triangle", "cross", "ring")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
_PLACES = [f"{row} {column}" for row in _ROWS for column in _COLUMNS]
_listed = str.split
_NUMBERS = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen"
)
_FIRST = _listed(
    "ada bea carl dora emil fay gus hana ivo june kurt lena milo nora otto pia quin rosa sven tara udo vera wim yara"
)
_LAST = _listed(
    "ash brook cole dale east frost gray hill iris jones kent lake moss north oak price reed stone thorn vale west "
    "york zane birch"
)
_FACTS = {
    "where does {} live ?": _listed(
        "oslo paris rome cairo lima quito delhi tokyo hanoi perth miami dakar accra sofia riga turin"
    ),
    "what does {} eat ?": _listed(
        "bread rice beans figs plums soup cake fish eggs corn nuts pears kale dates curry pasta"
    ),
    "what does {} play ?": _listed(
        "chess flute drums cello golf rugby darts poker piano banjo squash tennis harp bowls tuba polo"
    ),
    "what does {} own ?": _listed("boat farm mill cat dog goat hens bees kiln loom barn sled van bike tent shop"),
}
_Cell = tuple[str, str] | None
"""Color and shape, or nothing."""
_Asked = tuple[str, str]
"""A question and its answer."""


def write_questions(folder: Path, count: int, seed: int = SEED, pictures: bool = True) -> Path:
    """The file of so many questions, drawn by the seed, made in this folder. pictures: whether some have one."""
    draw = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    entries: list[dict[str, str | None]] = []
    while len(entries) < count:
        picture, (question, answer) = _drawn(draw)
        if picture is not None and not pictures:
            continue
        name = f"images/{len(entries)}.png" if picture else None
        if picture and name:
            picture.save(folder / name)
        entries.append({"image": name, "question": question, "answer": answer})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


def _drawn(draw: random.Random) -> tuple[Image.Image | None, _Asked]:
    ask = draw.choices(tuple(_KINDS), tuple(_KINDS.values()))[0]
    if ask in _WITHOUT_PICTURE:
        return None, _WITHOUT_PICTURE[ask](draw)
    while True:
        cells = [None if draw.random() < 0.4 else (_color(draw), draw.choice(_SHAPES)) for _ in range(9)]
        if asked := next(_ABOUT_PICTURE[ask](draw, cells), None):
            return _picture(draw, cells), asked


def _fact(draw: random.Random) -> _Asked:
    number = draw.randrange(len(_FIRST) * len(_LAST) * len(_FACTS))
    person, kind = divmod(number, len(_FACTS))
    question, answers = list(_FACTS.items())[kind]
    name = f"{_FIRST[person // len(_LAST)]} {_LAST[person % len(_LAST)]}"
    return question.format(name), random.Random(f"fact {number}").choice(answers)


def _plus(draw: random.Random) -> _Asked:
    first, second = draw.randint(0, 9), draw.randint(0, 9)
    return f"what is {_NUMBERS[first]} plus {_NUMBERS[second]} ?", _NUMBERS[first + second]


def _order(draw: random.Random) -> _Asked:
    picked = draw.sample(range(len(_NUMBERS)), 3)
    asked, answer = (" , ".join(_NUMBERS[number] for number in numbers) for numbers in (picked, sorted(picked)))
    return f"order {asked} smallest first .", answer


def _reverse(draw: random.Random) -> _Asked:
    words = [draw.choice([*_COLORS, *_SHAPES]) for _ in range(3)]
    return f"reverse the words {' '.join(words)} .", " ".join(reversed(words))


def _at(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    place = draw.randrange(9)
    yield f"what is at {_PLACES[place]} ?", _named(cells[place])


def _where(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    once = [place for place, cell in enumerate(cells) if cell and cells.count(cell) == 1]
    if once:
        place = draw.choice(once)
        yield f"where is the {' '.join(cells[place] or ())} ?", _PLACES[place]


def _exists(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    there = [cell for cell in cells if cell]
    cell = draw.choice(there) if there and draw.random() < 0.5 else (_color(draw), draw.choice(_SHAPES))
    yield f"is there a {' '.join(cell)} ?", "yes" if cell in cells else "no"


def _count_color(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    there = [cell for cell in cells if cell]
    color = draw.choice(there)[0] if there and draw.random() < 0.8 else _color(draw)
    yield f"how many {color} shapes are there ?", _NUMBERS[sum(cell[0] == color for cell in there)]


def _count_shape(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    shape = draw.choice(_SHAPES)
    yield f"how many shapes are a {shape} ?", _NUMBERS[sum(cell is not None and cell[1] == shape for cell in cells)]


def _row(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    row = draw.randrange(3)
    yield f"what is in the {_ROWS[row]} row ?", " , ".join(map(_named, cells[3 * row : 3 * row + 3]))


def _same(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    there = [(place, cell[0]) for place, cell in enumerate(cells) if cell]
    pairs = [(one, other) for one in there for other in there if one[0] != other[0]]
    alike = [(one, other) for one, other in pairs if one[1] == other[1]]
    if pairs:
        one, other = draw.choice(alike if alike and draw.random() < 0.5 else pairs)
        answer = "yes" if one[1] == other[1] else "no"
        yield f"is {_PLACES[one[0]]} the same color as {_PLACES[other[0]]} ?", answer


def _describe(draw: random.Random, cells: list[_Cell]) -> Iterator[_Asked]:
    yield "describe the picture .", " , ".join(map(_named, cells))


_WITHOUT_PICTURE: dict[str, Callable[[random.Random], _Asked]] = {
    "plus": _plus,
    "order": _order,
    "reverse": _reverse,
    "fact": _fact,
}
_ABOUT_PICTURE: dict[str, Callable[[random.Random, list[_Cell]], Iterator[_Asked]]] = {
    "at": _at,
    "where": _where,
    "exists": _exists,
    "count color": _count_color,
    "count shape": _count_shape,
    "row": _row,
    "same": _same,
    "describe": _describe,
}
"""Nothing comes of a kind that the cells do not allow."""
_KINDS = {
    "at": 4,
    "where": 2,
    "exists": 2,
    "count color": 2,
    "count shape": 2,
    "row": 2,
    "same": 1,
    "describe": 3,
    "plus": 1,
    "order": 1,
    "reverse": 1,
    "fact": 10,
}
"""How often each is asked."""


def _color(draw: random.Random) -> str:
    return draw.choice(list(_COLORS))


def _named(cell: _Cell) -> str:
    return f"a {' '.join(cell)}" if cell else "nothing"


def _picture(draw: random.Random, cells: list[_Cell]) -> Image.Image:
    shade = draw.randint(225, 255)
    picture = Image.new("RGB", (3 * _CELL, 3 * _CELL), (shade, shade, shade))
    brush = ImageDraw.Draw(picture)
    for place, cell in enumerate(cells):
        if cell:
            size = draw.uniform(5.0, 6.8)
            x, y = (_CELL * number + _CELL / 2 + draw.uniform(-1, 1) for number in (place % 3, place // 3))
            _paint(brush, cell[1], _COLORS[cell[0]], x, y, size)
    return picture


def _paint(
    brush: ImageDraw.ImageDraw, shape: str, color: tuple[int, int, int], x: float, y: float, size: float
) -> None:
    if shape == "circle":
        brush.ellipse((x - size, y - size, x + size, y + size), fill=color)
    elif shape == "ring":
        brush.ellipse((x - size, y - size, x + size, y + size), outline=color, width=3)
    elif shape == "square":
        brush.rectangle((x - size * 0.85, y - size * 0.85, x + size * 0.85, y + size * 0.85), fill=color)
    elif shape == "triangle":
        brush.polygon([(x, y - size), (x + size, y + size * 0.8), (x - size, y + size * 0.8)], fill=color)
    else:
        brush.line((x - size, y, x + size, y), fill=color, width=4)
        brush.line((x, y - size, x, y + size), fill=color, width=4)
