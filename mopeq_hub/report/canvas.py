"""What all plots are drawn on: their size, their colours and their style, the same whatever the user's own settings."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 200
"""Inches, and pixels to the inch."""

COLOURS = {2: "#f2b632", 3: "#58a6d6", 4: "#1d559c", 8: "#14183a"}
"""By width: from light to dark as widths grow, and warm against cold between what loses most and the others."""

OURS = "#c4411a"
INK, FAINT, PALE = "#20242c", "#6b7280", "#e8eaee"
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
"""Behind words, so that no grid line strikes them through."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.5,
    "hatch.color": "#c3c8d0",
}
LEFT, RIGHT, TOP = 0.75, 0.25, 0.45
"""Margins in inches: for the layers' numbers, for the last label, for the title."""


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and this file's style, whatever the user's own settings are."""
    import matplotlib

    settings: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(settings | STYLE):
        yield


def figure_of(plot_height: float, below: float) -> "tuple[Figure, Axes]":
    """A figure as high as it takes to hold axes of `plot_height` inches with `below` inches under them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = math.ceil((TOP + plot_height + below) * DPI) / DPI
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width = WIDTH - LEFT - RIGHT
    axes = figure.add_axes((LEFT / WIDTH, below / height, width / WIDTH, plot_height / height))
    return figure, axes


def thin(set_ticks: Callable[[list[int]], Any], count: int, inches: float, room: float) -> None:
    """Ticks at round numbers from 0, each with at least `room` inches."""
    steps = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500)
    step = next((step for step in steps if step * inches / count >= room), count)
    set_ticks(list(range(0, count, step)))


def logarithmic(axes: "Axes", values: list[float], room: float = 2.5) -> None:
    """A logarithmic y axis with so many times the values for room, and plain numbers for ticks: within one decade,
    matplotlib's own are products too wide for the margin."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values) / room, max(values) * room
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
