"""The plots of a publication, drawn for the width of a card on the Hub: 800 pixels, at twice the resolution.

Everything is placed in inches, so that 4 layers of 24 experts and 94 of 128 both get text of the same size. Colours are
told apart by every kind of colour vision and in grey. The same documents give the same bytes: files hold no date and no
version.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import Choice, choices, counts, one_line, size

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

WIDTH, DPI = 8.0, 200
"""Inches, and pixels to the inch."""

COLOURS = {2: "#f2b632", 3: "#58a6d6", 4: "#1d559c", 8: "#14183a"}
"""By width: from light to dark as widths grow, and warm against cold between what loses most and the others."""

OURS = "#c4411a"
INK, FAINT, PALE = "#20242c", "#6b7280", "#e8eaee"
ABSENT: dict[str, Any] = {"facecolor": PALE, "hatch": "////", "edgecolor": "#c3c8d0", "linewidth": 0}
"""How a layer without routed experts looks."""
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

SPOTS = [(8, 0), (-8, 0)] + [
    (side * right, up * rise)
    for right, rise in ((10, 14), (16, 24), (24, 36), (32, 50), (42, 66))
    for up in (1, -1)
    for side in (1, -1)
]
"""Where a point's name may go, in 1/72 inch from it, nearest first."""

SIGNALS = {
    "hessian": "trace of the Hessian",
    "distortion": "share of the layer's output that is lost",
    "router": "place in the order of the layer's experts",
}


def draw(manifest: dict[str, Any], fidelity: dict[str, Any] | None, folder: Path) -> list[Path]:
    """Write the plots as PNG into `folder`/plots and return their paths; what was not measured is not drawn."""
    drawn: dict[str, Figure] = {}
    with _style():
        drawn["sensitivity.png"] = _sensitivity(manifest)
        drawn["bits.png"] = _bits(manifest)
        drawn["bits_per_layer.png"] = _bits_per_layer(manifest)
        if fidelity is not None:
            drawn["size_fidelity.png"] = _size_fidelity(choices(manifest, fidelity))
            if fidelity["layers"]["errors"]:
                drawn["layer_errors.png"] = _layer_errors(fidelity["layers"]["errors"])
        target = folder / "plots"
        target.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figure.savefig(target / name, metadata={"Software": None})
    return [target / name for name in drawn]


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and this file's style, whatever the user's own settings are."""
    import matplotlib

    settings: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(settings | STYLE):
        yield


def _figure(plot_height: float, below: float) -> "tuple[Figure, Axes]":
    """A figure as high as it takes to hold axes of `plot_height` inches with `below` inches under them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = math.ceil((TOP + plot_height + below) * DPI) / DPI
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width = WIDTH - LEFT - RIGHT
    axes = figure.add_axes((LEFT / WIDTH, below / height, width / WIDTH, plot_height / height))
    return figure, axes


def _grid(manifest: dict[str, Any], key: str) -> "np.ndarray":
    """`bits` or `sensitivity` as an array [layers, experts], NaN where there is no such routed expert."""
    import numpy as np

    columns = max(len(layer[key]) for layer in manifest["experts"])
    grid = np.full((manifest["model"]["layers"], columns), np.nan)
    for layer in manifest["experts"]:
        grid[layer["layer"], : len(layer[key])] = layer[key]
    return grid


def _heatmap(grid: "np.ndarray", title: str, below: float, **colours: Any) -> "tuple[Figure, Axes, Any]":
    """The grid as an image: layers downwards, experts to the right, cells as square as the page allows."""
    layers, experts = grid.shape
    cell = (WIDTH - LEFT - RIGHT) / experts
    plot_height = min(max(layers * min(max(cell, 0.045), 0.3), 0.9), 6.5)
    figure, axes = _figure(plot_height, below)
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", **colours)
    axes.set_title(title)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    _thin(axes.set_xticks, experts, WIDTH - LEFT - RIGHT, 0.32)
    _thin(axes.set_yticks, layers, plot_height, 0.2)
    _separate(axes, grid, min(cell, plot_height / layers))
    _mark_absent(axes, grid, plot_height / layers)
    return figure, axes, image


def _thin(set_ticks: Callable[[list[int]], Any], count: int, inches: float, room: float) -> None:
    """Ticks at round numbers from 0, each with at least `room` inches."""
    steps = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256, 500)
    step = next((step for step in steps if step * inches / count >= room), count)
    set_ticks(list(range(0, count, step)))


def _separate(axes: "Axes", grid: "np.ndarray", cell: float) -> None:
    """White lines between cells that are large enough (`cell`, inches) to be seen one by one."""
    axes.tick_params(length=2)
    if cell < 0.1:
        return
    layers, experts = grid.shape
    axes.set_xticks([edge - 0.5 for edge in range(1, experts)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, layers)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _mark_absent(axes: "Axes", grid: "np.ndarray", row: float) -> None:
    """Hatch the layers without routed experts, and say so where a row (`row`, inches) has room for words."""
    import numpy as np

    for layer in np.flatnonzero(np.isnan(grid).all(axis=1)).tolist():
        axes.axhspan(layer - 0.5, layer + 0.5, **ABSENT, zorder=2)
        if row >= 0.17:
            middle = (grid.shape[1] - 1) / 2
            box = {"facecolor": PALE, "edgecolor": "none", "pad": 1.5}
            axes.text(middle, layer, "no routed experts", ha="center", va="center", fontsize=8, color=FAINT, bbox=box)


def _has_absent(manifest: dict[str, Any]) -> bool:
    return len(manifest["experts"]) < manifest["model"]["layers"]


def _legend(figure: "Figure", manifest: dict[str, Any]) -> None:
    """The widths with their counts, and what hatching means, along the lower edge."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=COLOURS[width], label=f"{width} bits ({count} expert{'s' if count > 1 else ''})")
        for width, count in counts(manifest).items()
    ]
    if _has_absent(manifest):
        handles.append(Patch(**ABSENT, label="no routed experts"))
    corner = (LEFT / WIDTH, 0.1 / figure.get_figheight())
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=corner,
        ncols=len(handles),
        frameon=False,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.8,
    )


def _sensitivity(manifest: dict[str, Any]) -> "Figure":
    """How sensitive each expert is."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    grid = _grid(manifest, "sensitivity")
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    spread = {"vmin": low, "vmax": high} if high > low else {"vmin": low - 0.5, "vmax": low + 0.5}
    figure, _, image = _heatmap(grid, "Sensitivity of each expert", 1.05, cmap="viridis", **spread)
    height = figure.get_figheight()
    bar_axes = figure.add_axes((LEFT / WIDTH, 0.42 / height, 0.45, 0.12 / height))
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal")
    bar.locator = MaxNLocator(5)
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-3, 5))
    bar.formatter = formatter
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    signal = manifest["signal"]["name"]
    named = f"{signal}, the {SIGNALS[signal]}" if signal in SIGNALS else one_line(signal)
    figure.text(LEFT / WIDTH + 0.475, 0.48 / height, f"signal: {named}", va="center", parse_math=False)
    return figure


def _bits(manifest: dict[str, Any]) -> "Figure":
    """The bit map; with the width written into each cell that is large enough."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    grid = _grid(manifest, "bits")
    colours = ListedColormap(list(COLOURS.values()))
    norm = BoundaryNorm([1.5, 2.5, 3.5, 6, 12], len(COLOURS))
    figure, axes, _ = _heatmap(grid, "Bits of each expert", 0.85, cmap=colours, norm=norm)
    if (WIDTH - LEFT - RIGHT) / grid.shape[1] >= 0.16 and grid.shape[0] <= 30:
        for layer in manifest["experts"]:
            for index, width in enumerate(layer["bits"]):
                axes.text(index, layer["layer"], str(width), ha="center", va="center", fontsize=8, color=_on(width))
    _legend(figure, manifest)
    return figure


def _on(width: int) -> str:
    """The colour of text on a width's colour."""
    return INK if width < 4 else "white"


def _bits_per_layer(manifest: dict[str, Any]) -> "Figure":
    """How many experts of each layer have each width."""
    from matplotlib.ticker import MaxNLocator

    layers = manifest["model"]["layers"]
    figure, axes = _figure(2.4, 0.85)
    floors = dict.fromkeys(range(layers), 0)
    tallest = max(len(layer["bits"]) for layer in manifest["experts"])
    thick = min(0.86, 0.9 * layers / (WIDTH - LEFT - RIGHT))
    for width in counts(manifest):
        for layer in manifest["experts"]:
            number, count = layer["layer"], layer["bits"].count(width)
            axes.bar(number, count, thick, floors[number], color=COLOURS[width], linewidth=0)
            if layers <= 24 and count >= tallest * 0.08:
                middle = floors[number] + count / 2
                axes.text(number, middle, str(count), ha="center", va="center", fontsize=8, color=_on(width))
            floors[number] += count
    for number in (number for number, count in floors.items() if count == 0):
        axes.bar(number, tallest, thick, **ABSENT)
    axes.set_title("Widths in each layer")
    axes.set_xlabel("layer")
    axes.set_ylabel("experts")
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(0, tallest)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)
    _thin(axes.set_xticks, layers, WIDTH - LEFT - RIGHT, 0.32)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(figure, manifest)
    return figure


def _layer_errors(errors: list[float]) -> "Figure":
    """How far the hidden states are from the original's after each layer."""
    figure, axes = _figure(2.0, 0.6)
    axes.plot(range(len(errors)), [100 * error for error in errors], "o-", color=OURS, markersize=4, linewidth=1.2)
    axes.set_title("Error of the hidden states after each layer")
    axes.set_xlabel("layer")
    axes.set_ylabel("of the original's norm, %")
    axes.set_xlim(-0.6, len(errors) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=PALE, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    _thin(axes.set_xticks, len(errors), WIDTH - LEFT - RIGHT, 0.32)
    return figure


def _size_fidelity(rows: list[Choice]) -> "Figure":
    """Size against mean KL; the original, which differs from itself by nothing, as a line at its size."""
    original, *compared = rows
    shown = [row for row in compared if row.kl is not None and math.isfinite(row.kl)]
    floor = min((row.kl for row in shown if row.kl), default=1e-3) / 10
    points = [(float(row.bytes), max(row.kl or 0, floor)) for row in shown]
    names = [(_shortened(one_line(row.name)), row is compared[-1]) for row in shown]
    figure, axes = _figure(3.2, 0.6)
    _size_axis(axes, original.bytes, max(row.bytes for row in rows))
    _kl_axis(axes, [kl for _, kl in points] or [floor])
    axes.axvline(original.bytes, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    for point, (_, ours) in zip(points, names, strict=True):
        axes.plot(*point, "D" if ours else "o", color=OURS if ours else COLOURS[4], markersize=8 if ours else 6.5)
    axes.set_title("Size and fidelity: lower left is better")
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, original, points, names)
    return figure


def _size_axis(axes: "Axes", original: int, largest: int) -> None:
    """From nothing to a little more than the largest, in the unit in which people read the original's size."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    unit = size(original).split()[-1]
    scale = 1000 ** ("bytes", "kB", "MB", "GB", "TB", "PB").index(unit)
    axes.set_xlim(0, 1.08 * largest)
    step = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, 1.08 * largest / scale)[1]
    axes.xaxis.set_major_locator(MultipleLocator(step * scale))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:g}"))
    axes.set_xlabel(f"size of all tensors, {unit}")


def _kl_axis(axes: "Axes", values: list[float]) -> None:
    """Logarithmic, with room around the values (nats) and plain numbers for ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values) / 2.5, max(values) * 2.5
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("mean KL divergence, nats")


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def _label(axes: "Axes", original: Choice, points: list[tuple[float, float]], names: list[tuple[str, bool]]) -> None:
    """Write each point's name beside it, where it covers no point, no other name and not the original's line."""
    frame = axes.get_window_extent()
    line = axes.transData.transform((original.bytes, axes.get_ylim()[0]))[0]
    taken = [_box(x - 14, y - 14, x + 14, y + 14) for x, y in map(axes.transData.transform, points)]
    on_right = line + 2 * DPI < frame.x1
    head = axes.annotate(
        f"original, {size(original.bytes)}",
        (line, frame.y1),
        xycoords="figure pixels",
        xytext=(5 if on_right else -5, -2),
        textcoords="offset points",
        ha="left" if on_right else "right",
        va="top",
        color=FAINT,
        bbox=CLEAR,
    )
    taken += [head.get_window_extent(), _box(line - 4, frame.y0, line + 4, frame.y1)]
    for point, (name, ours) in sorted(zip(points, names, strict=True), key=lambda pair: -pair[1][1]):
        taken.append(_place(axes, point, name, ours, taken, frame))


def _place(
    axes: "Axes", point: tuple[float, float], name: str, ours: bool, taken: list["Bbox"], frame: "Bbox"
) -> "Bbox":
    """Write one name at the nearest free spot, with a thin line to its point where it is not right beside it."""
    leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
    for offset in SPOTS:
        note = _note(axes, point, name, ours, offset)
        box = note.get_window_extent().padded(3)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + RIGHT * DPI and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            if offset[1]:
                axes.annotate("", point, xytext=offset, textcoords="offset points", arrowprops=leader)
            return box
        note.remove()
    return _note(axes, point, name, ours, SPOTS[0]).get_window_extent()


def _note(axes: "Axes", point: tuple[float, float], name: str, ours: bool, offset: tuple[int, int]) -> "Annotation":
    """A name at `offset` (1/72 inch) from its point, in data coordinates."""
    return axes.annotate(
        name,
        point,
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        va="center",
        fontweight="bold" if ours else "normal",
        parse_math=False,
        bbox=CLEAR,
    )


def _box(x0: float, y0: float, x1: float, y1: float) -> "Bbox":
    """A rectangle in pixels."""
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x0, y0, x1, y1)
