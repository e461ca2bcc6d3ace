"""A value for every expert as a picture to click: one row a layer, one column an expert."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

WIDTH = 1920
"""About how many pixels wide a picture is: twice what a page shows, so that it stays sharp."""

TALLEST_CELL = 96
COLOURS = {2: "#f2b632", 3: "#58a6d6", 4: "#1d559c", 8: "#14183a"}
"""By width, as in the card's plots; told apart by every kind of colour vision."""

SCALE = ("#fbf3d9", "#f3c173", "#d9773f", "#a3324a", "#4a1c53")
"""From the least to the most sensitive."""

CHOSEN = (230, 0, 126, 255)
"""The frame around the expert that is shown."""
THINNEST_FRAME = 6
SMALLEST_WITH_GAP = 32
"""Pixels of a cell; between smaller ones a line would come and go as the picture is scaled down."""

PROJECTIONS = ("gate", "up", "down")
Colouring = Callable[[list[Any]], np.ndarray]


@dataclass(frozen=True)
class Heatmap:
    """rows: by layer number, the layer's values by expert. colouring: uint8 [experts, stripes, 3] of a row of values;
    stripes lie in a cell from top to bottom."""

    rows: dict[int, list[Any]]
    colouring: Colouring

    @property
    def _experts(self) -> int:
        return max(map(len, self.rows.values()))

    @property
    def cell(self) -> int:
        """Pixels of a cell's side."""
        return max(4, min(TALLEST_CELL, WIDTH // self._experts))

    def draw(self, layer: int, expert: int) -> Image.Image:
        """The picture, in which one expert is framed; between cells that are large enough the page shows through."""
        cell = self.cell
        gap = cell // 12 if cell >= SMALLEST_WITH_GAP else 0
        pixels = np.zeros((len(self.rows) * cell, self._experts * cell, 4), np.uint8)
        for place, values in enumerate(self.rows.values()):
            colours = self.colouring(values)
            stripe = np.arange(cell) * colours.shape[1] // cell
            drawn = pixels[place * cell : (place + 1) * cell, : len(values) * cell]
            drawn[..., :3] = colours.swapaxes(0, 1)[stripe].repeat(cell, 1)
            drawn[..., 3] = 255
        for start in range(gap):
            pixels[start::cell, :, 3] = 0
            pixels[:, start::cell, 3] = 0
        top, left = list(self.rows).index(layer) * cell, expert * cell
        inner = pixels[top : top + cell, left : left + cell].copy()
        thick = max(THINNEST_FRAME, cell // 12)
        pixels[max(0, top - thick) : top + cell + thick, max(0, left - thick) : left + cell + thick] = CHOSEN
        pixels[top : top + cell, left : left + cell] = inner
        return Image.fromarray(pixels, "RGBA")

    def at(self, x: float, y: float) -> tuple[int, int] | None:
        """(layer, expert) at a pixel, None where there is none."""
        row, expert = int(y) // self.cell, int(x) // self.cell
        layers = list(self.rows)
        if not 0 <= row < len(layers) or not 0 <= expert < len(self.rows[layers[row]]):
            return None
        return layers[row], expert


def split(widths: int | dict[str, int], names: Sequence[str] = PROJECTIONS) -> tuple[int, ...]:
    """An expert's widths, of its projections, as the manifest has them: one number, or one by projection."""
    return (widths,) * len(names) if isinstance(widths, int) else tuple(widths[name] for name in names)


def by_width(values: list[int | dict[str, int]], names: Sequence[str] = PROJECTIONS) -> np.ndarray:
    """Each expert's colour, in a stripe for each of its projections."""
    colours = [[_rgb(COLOURS.get(width, "#808080")) for width in split(value, names)] for value in values]
    return np.array(colours, np.uint8)


def by_amount(least: float, most: float) -> Colouring:
    """Colours between the ends of a scale."""
    stops = np.array([_rgb(colour) for colour in SCALE], np.float64)

    def colour(values: list[float]) -> np.ndarray:
        share = np.clip((np.array(values, np.float64) - least) / ((most - least) or 1), 0, 1) * (len(stops) - 1)
        channels = [np.interp(share, range(len(stops)), channel) for channel in stops.T]
        return np.stack(channels, 1).astype(np.uint8)[:, None]

    return colour


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.lstrip("#")))
