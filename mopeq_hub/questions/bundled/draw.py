"""Draws the bundled pictures and writes their questions: `python -m mopeq_hub.questions.bundled.draw` makes this folder's data again.

The set is what fidelity is measured on when a user brings no questions: plain drawings of the kinds of picture that vision-language
models are asked about (shapes, charts, signs, scenes, clocks, tables), full-sentence answers, and some questions without a picture.
"""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
SIZE = 336
Questions = list[tuple[str, str]]
INK = "#222222"


def _canvas(colour: str = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), colour)
    return image, ImageDraw.Draw(image)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def shapes() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    draw.ellipse((30, 30, 140, 140), fill="#d62728")
    draw.rectangle((190, 40, 300, 150), fill="#1f77b4")
    draw.polygon([(85, 190), (30, 300), (140, 300)], fill="#2ca02c")
    draw.ellipse((190, 190, 300, 300), fill="#ffbf00")
    return image, [
        (
            "What is in this picture?",
            "The picture shows four shapes on a white background: a red circle, a blue square, a green triangle and a yellow circle.",
        ),
        (
            "How many circles are there?",
            "There are two circles, a red one at the top left and a yellow one at the bottom right.",
        ),
    ]


def bar_chart() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    draw.text((70, 12), "Visitors per day", fill=INK, font=_font(24))
    for place, (day, value) in enumerate((("Mon", 40), ("Tue", 65), ("Wed", 30), ("Thu", 90), ("Fri", 75))):
        left = 35 + place * 58
        draw.rectangle((left, 290 - 2 * value, left + 38, 290), fill="#4c72b0")
        draw.text((left + 2, 296), day, fill=INK, font=_font(16))
        draw.text((left + 8, 268 - 2 * value), str(value), fill=INK, font=_font(16))
    draw.line((25, 290, 325, 290), fill=INK, width=2)
    return image, [
        ("Which day had the most visitors?", "Thursday had the most visitors, with 90 of them."),
        (
            "Describe this chart.",
            "It is a bar chart titled Visitors per day. Monday had 40 visitors, Tuesday 65, Wednesday 30, Thursday 90 and Friday 75.",
        ),
    ]


def clock() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#e8f1fa")
    draw.ellipse((38, 38, 298, 298), fill="white", outline=INK, width=6)
    for hour in range(1, 13):
        angle = math.radians(hour * 30 - 90)
        draw.text(
            (168 + 108 * math.cos(angle), 168 + 108 * math.sin(angle)), str(hour), fill=INK, font=_font(22), anchor="mm"
        )
    for length, width, angle in ((62, 9, 90), (92, 5, 0)):
        turned = math.radians(angle - 90)
        draw.line((168, 168, 168 + length * math.cos(turned), 168 + length * math.sin(turned)), fill=INK, width=width)
    return image, [
        (
            "What time does the clock show?",
            "The short hand points to three and the long hand to twelve, so the clock shows three o'clock.",
        )
    ]


def sign() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#7a5230")
    draw.rounded_rectangle((28, 80, 308, 250), 16, fill="#f5e9d0", outline=INK, width=4)
    draw.text((168, 130), "OPEN", fill="#a01515", font=_font(64), anchor="mm")
    draw.text((168, 208), "9 am to 6 pm", fill=INK, font=_font(30), anchor="mm")
    return image, [
        ("What does the sign say?", 'The sign says "OPEN" in red letters and, below it, "9 am to 6 pm".'),
        ("When does this shop close?", "According to the sign, the shop closes at six in the evening."),
    ]


def house() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#bfe3ff")
    draw.rectangle((0, 250, 336, 336), fill="#6ab04c")
    draw.rectangle((90, 150, 240, 270), fill="#f0d9b5", outline=INK, width=3)
    draw.polygon([(75, 150), (165, 75), (255, 150)], fill="#b33939", outline=INK)
    draw.rectangle((148, 205, 182, 270), fill="#5d4037")
    for left in (104, 198):
        draw.rectangle((left, 175, left + 30, 205), fill="#fff59d", outline=INK, width=2)
    draw.ellipse((262, 22, 314, 74), fill="#ffd32a")
    return image, [
        (
            "Describe the scene.",
            "A small house with a red roof, a brown door and two lit windows stands on a green meadow. The sky is blue and the sun is shining.",
        )
    ]


def traffic_light() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#dfe6e9")
    draw.rounded_rectangle((113, 25, 223, 311), 18, fill="#2d3436")
    for top, colour in ((40, "#5a2a2a"), (128, "#5a532a"), (216, "#2ecc71")):
        draw.ellipse((128, top, 208, top + 80), fill=colour)
    return image, [("May the cars go?", "Yes. The traffic light shows green, so the cars may go.")]


def receipt() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#f8f8f4")
    for row, (left, right) in enumerate(
        (
            ("Corner Bakery", ""),
            ("", ""),
            ("2 Bread", "7.00"),
            ("1 Coffee", "2.50"),
            ("3 Rolls", "2.10"),
            ("", ""),
            ("Total", "11.60"),
        )
    ):
        draw.text((40, 35 + row * 40), left, fill=INK, font=_font(26))
        draw.text((296, 35 + row * 40), right, fill=INK, font=_font(26), anchor="ra")
    draw.line((40, 268, 296, 268), fill=INK, width=2)
    return image, [
        ("What is the total on this receipt?", "The total is 11.60."),
        (
            "List the items that were bought.",
            "Two breads for 7.00, one coffee for 2.50 and three rolls for 2.10 were bought at the Corner Bakery.",
        ),
    ]


def chessboard() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#f0d9b5")
    for row in range(4):
        for column in range(4):
            if (row + column) % 2:
                draw.rectangle((column * 84, row * 84, column * 84 + 83, row * 84 + 83), fill="#b58863")
    draw.ellipse((100, 16, 152, 68), fill="black")
    draw.ellipse((184, 268, 236, 320), fill="white", outline="black", width=3)
    return image, [
        (
            "Which pieces are on the board, and where?",
            "There are two round pieces: a black one in the top row, second column, and a white one in the bottom row, third column.",
        )
    ]


def line_chart() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    draw.line((40, 30, 40, 290, 320, 290), fill=INK, width=2)
    points = [(40 + 54 * step, 280 - 2.2 * value) for step, value in enumerate((20, 28, 45, 43, 70, 100))]
    draw.line(points, fill="#d62728", width=4)
    for x, y in points:
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill="#d62728")
    draw.text((180, 15), "Sales", fill=INK, font=_font(24), anchor="mm")
    return image, [
        (
            "How did sales develop?",
            "Sales rose overall: slowly at first, with a small dip in the middle, and steeply towards the end.",
        )
    ]


def pie_chart() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    start = -90.0
    for share, colour, label, place in (
        (50, "#1f77b4", "Rent 50%", (250, 170)),
        (30, "#ff7f0e", "Food 30%", (100, 230)),
        (20, "#2ca02c", "Fun 20%", (105, 105)),
    ):
        draw.pieslice((28, 28, 308, 308), start, start + 3.6 * share, fill=colour)
        draw.text(place, label, fill="white", font=_font(20), anchor="mm")
        start += 3.6 * share
    return image, [
        (
            "What takes the largest share of the budget?",
            "Rent takes the largest share of the budget, namely half of it.",
        )
    ]


def table() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    for row, cells in enumerate(
        (("City", "High", "Low"), ("Oslo", "4", "-3"), ("Rome", "15", "7"), ("Cairo", "24", "14"), ("Lima", "26", "20"))
    ):
        top = 40 + row * 54
        if row == 0:
            draw.rectangle((20, top - 12, 316, top + 36), fill="#d0e0f0")
        for column, cell in enumerate(cells):
            draw.text((36 + column * 105, top), cell, fill=INK, font=_font(24))
        draw.line((20, top + 37, 316, top + 37), fill="#888888")
    return image, [
        ("Which city is the coldest?", "Oslo is the coldest city, with a high of 4 and a low of -3."),
        ("What is the high in Cairo?", "The high in Cairo is 24."),
    ]


def face() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#fdfdfd")
    draw.ellipse((48, 48, 288, 288), fill="#ffeb3b", outline=INK, width=4)
    for left in (108, 198):
        draw.ellipse((left, 120, left + 30, 160), fill=INK)
    draw.arc((108, 130, 228, 240), 20, 160, fill=INK, width=8)
    return image, [("How does this face feel?", "The yellow face is smiling, so it looks happy.")]


def dice() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#1e6f50")
    for left, spots in ((30, ((0, 0), (1, 1), (2, 2))), (186, ((0, 0), (0, 2), (1, 1), (2, 0), (2, 2)))):
        draw.rounded_rectangle((left, 108, left + 120, 228), 18, fill="white")
        for column, row in spots:
            x, y = left + 28 + 32 * column, 136 + 32 * row
            draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill=INK)
    return image, [
        ("What do the two dice add up to?", "One die shows three and the other five, so they add up to eight.")
    ]


def flag() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    for row, colour in enumerate(("#c0392b", "#ecf0f1", "#2980b9")):
        draw.rectangle((20, 60 + 72 * row, 316, 132 + 72 * row), fill=colour)
    return image, [
        ("Which colours does the flag have, from top to bottom?", "From top to bottom the flag is red, white and blue.")
    ]


def warning() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    draw.polygon([(168, 30), (318, 290), (18, 290)], fill="#f9ca24", outline=INK, width=8)
    draw.text((168, 205), "!", fill=INK, font=_font(150), anchor="mm")
    return image, [
        (
            "What does this sign mean?",
            "It is a yellow warning triangle with an exclamation mark; it tells people to be careful.",
        )
    ]


def map_grid() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#eef5e6")
    for step in range(1, 4):
        draw.line((84 * step, 0, 84 * step, 336), fill="#c0c0c0", width=8)
        draw.line((0, 84 * step, 336, 84 * step), fill="#c0c0c0", width=8)
    draw.line((84, 336, 84, 168, 252, 168, 252, 60), fill="#e74c3c", width=6)
    draw.text((252, 40), "B", fill=INK, font=_font(34), anchor="mm")
    draw.text((52, 312), "A", fill=INK, font=_font(34), anchor="mm")
    return image, [
        (
            "How do I get from A to B on this map?",
            "Go straight up two blocks, turn right, go two blocks, turn left and go up until you reach B.",
        )
    ]


def night() -> tuple[Image.Image, Questions]:
    image, draw = _canvas("#0b1d3a")
    draw.ellipse((210, 35, 290, 115), fill="#fdf6d8")
    for x, y in ((40, 50), (90, 120), (150, 40), (60, 200), (180, 150), (300, 180), (120, 90)):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="white")
    draw.polygon([(0, 336), (0, 260), (90, 200), (170, 280), (250, 210), (336, 290), (336, 336)], fill="#10131c")
    return image, [
        (
            "Is it day or night in this picture?",
            "It is night: the sky is dark blue, with a full moon and seven stars above black mountains.",
        )
    ]


def formula() -> tuple[Image.Image, Questions]:
    image, draw = _canvas()
    draw.text((168, 168), "7 x 8 - 6 = ?", fill=INK, font=_font(48), anchor="mm")
    return image, [("Solve the problem in the picture.", "Seven times eight is 56, and 56 minus 6 is 50.")]


PICTURES = (
    shapes, bar_chart, clock, sign, house, traffic_light, receipt, chessboard, line_chart,
    pie_chart, table, face, dice, flag, warning, map_grid, night, formula,
)  # fmt: skip

WITHOUT_PICTURE: Questions = [
    (
        "Why is the sky blue?",
        "Air scatters the short waves of sunlight more than the long ones. Blue light therefore reaches our eyes from every direction, and the sky looks blue.",
    ),
    (
        "Write a Python function that returns the largest number of a list.",
        "def largest(numbers):\n    return max(numbers)",
    ),
    (
        "A train leaves at 9:40 and arrives at 11:05. How long does it take?",
        "From 9:40 to 11:05 it takes one hour and twenty-five minutes.",
    ),
    ("Translate into French: Good morning, how are you?", "Bonjour, comment allez-vous ?"),
    ("What is the capital of Australia?", "The capital of Australia is Canberra."),
    (
        "Summarise in one sentence what photosynthesis is.",
        "Photosynthesis is how plants turn light, water and carbon dioxide into sugar and oxygen.",
    ),
    (
        "Give me three tips for sleeping better.",
        "Go to bed at the same time every day, keep the bedroom dark and cool, and avoid screens and coffee in the evening.",
    ),
    (
        "If all cats are animals and Tom is a cat, what is Tom?",
        "Tom is an animal, because he is a cat and all cats are animals.",
    ),
    ("What is 17 times 23?", "17 times 23 is 391."),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    ("Schreibe einen Satz über den Winter.", "Im Winter fällt oft Schnee, und die Tage sind kurz."),
    ("Put these words in alphabetical order: pear, apple, fig, cherry.", "apple, cherry, fig, pear"),
]


def main() -> None:
    images = FOLDER / "images"
    images.mkdir(exist_ok=True)
    rows: list[dict[str, str | None]] = []
    for draw in PICTURES:
        picture, asked = draw()
        picture.quantize(64).save(images / f"{draw.__name__}.png", optimize=True)
        rows += [{"image": f"images/{draw.__name__}.png", "question": q, "answer": a} for q, a in asked]
    rows += [{"image": None, "question": q, "answer": a} for q, a in WITHOUT_PICTURE]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (FOLDER / "questions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
