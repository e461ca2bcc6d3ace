"""The plots of a study: KL against size by method, how signals agree with the ground truth, and where they differ."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import size
from mopeq_hub.report.canvas import COLOURS, FAINT, INK, LEFT, PALE, RIGHT, WIDTH, figure_of, logarithmic, style, thin

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7a4fbf", "#e69f00")
"""By signal (Okabe and Ito's, where they can be seen on white); signals that run on calibration data are dashed."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "p")
GAP = 0.25
"""Inches between panels."""
PANELS = 3
"""Heatmaps side by side."""


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Write the plots as PNG into `folder` and return their paths; what was not measured is not drawn."""
    drawn: dict[str, Figure] = {}
    with style():
        drawn["kl.png"] = _kl(document)
        if document["correlations"]:
            drawn["correlation.png"] = _correlation(document)
        if document["signals"]:
            drawn["sensitivity.png"] = _sensitivity(document)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figure.savefig(folder / name, metadata={"Software": None})
    return [folder / name for name in drawn]


def _looks(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How each signal is drawn: one colour and mark for a signal, whatever it runs on."""
    kinds = list(dict.fromkeys(each["name"].partition(":")[0] for each in document["signals"]))
    looks = {}
    for each in document["signals"]:
        kind, _, inputs = each["name"].partition(":")
        place = kinds.index(kind) % len(HUES)
        dashed = inputs == "calibration"
        looks[each["name"]] = {
            "color": HUES[place],
            "marker": MARKS[place],
            "linestyle": (0, (4, 2)) if dashed else "-",
            "markerfacecolor": "white" if dashed else HUES[place],
        }
    return looks


def _kl(document: dict[str, Any]) -> "Figure":
    """A panel for each allocator: mean KL against the bytes of the experts, and in each what all are held against."""
    from matplotlib.ticker import MaxNLocator

    rows, looks = document["rows"], _looks(document)
    kinds = [kind for kind in ("knapsack", "rank", "kmeans") if any(row["allocator"] == kind for row in rows)] or [""]
    scale, unit = _unit(max(row["experts_bytes"] for row in rows))
    values = [row["kl"] for row in rows if row["kl"] > 0] or [1e-3]
    below = 0.75 + 0.2 * math.ceil((len(looks) + 3) / 3)
    figure, first = figure_of(3.4, below)
    panels = _panels(figure, first, len(kinds), 3.4, below)
    for kind, axes in zip(kinds, panels, strict=True):
        logarithmic(axes, values, room=1.8)
        _reference(axes, rows, scale)
        for name, look in looks.items():
            points = sorted(
                (row["experts_bytes"] / scale, row["kl"])
                for row in rows
                if (row["signal"], row["allocator"]) == (name, kind)
            )
            if points:
                line = {**look, **({"linestyle": "none"} if kind == "kmeans" else {})}
                axes.plot(*zip(*points, strict=True), **line, markersize=4.5, linewidth=1.2, label=name)
        axes.set_title({"kmeans": "k-means, own size"}.get(kind, kind) or "uniform widths")
        axes.set_xlabel(f"experts, {unit}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(color=PALE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=2, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not panels[0]:
            axes.tick_params(labelleft=False, which="both")
    panels[0].set_ylabel("mean KL divergence, nats")
    _legend(figure, panels)
    return figure


def _reference(axes: "Axes", rows: list[dict[str, Any]], scale: float) -> None:
    """Uniform widths, random bit maps and the bound."""
    uniform = sorted(
        (row["experts_bytes"] / scale, row["kl"])
        for row in rows
        if row["allocator"] == "uniform" and row["budget"] is None
    )
    axes.plot(*zip(*uniform, strict=True), color=INK, marker="s", markersize=4, linewidth=0.9, label="uniform widths")
    shuffled = [row for row in rows if row["signal"] == "random"]
    if shuffled:
        axes.errorbar(
            [row["experts_bytes"] / scale for row in shuffled],
            [row["kl"] for row in shuffled],
            [_down(row) for row in shuffled],
            color=FAINT,
            fmt="x",
            markersize=4.5,
            linewidth=1,
            capsize=2,
            label="random, standard deviation",
        )
    bound = sorted((row["experts_bytes"] / scale, row["kl"]) for row in rows if row["signal"] == "ground truth")
    if bound:
        look: dict[str, Any] = {"color": INK, "linestyle": ":", "marker": "*", "markersize": 7, "linewidth": 1.2}
        axes.plot(*zip(*bound, strict=True), **look, label="ground truth, knapsack")


def _down(row: dict[str, Any]) -> float:
    """The standard deviation, but not so far down that a logarithmic axis had no place for it."""
    return min(row["kl_std"], 0.95 * row["kl"])


def _legend(figure: "Figure", panels: "list[Axes]") -> None:
    """What is drawn in any panel, once, under all."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    corner = (LEFT / WIDTH, 0.1 / figure.get_figheight())
    figure.legend(
        handles=list(handles.values()),
        loc="lower left",
        bbox_to_anchor=corner,
        ncols=3,
        frameon=False,
        borderaxespad=0,
        borderpad=0,
        handlelength=2.6,
        columnspacing=2.0,
    )


def _panels(figure: "Figure", first: "Axes", count: int, height: float, below: float) -> "list[Axes]":
    """`count` axes side by side in the place of the first."""
    first.remove()
    whole = figure.get_figheight()
    width = (WIDTH - LEFT - RIGHT - GAP * (count - 1)) / count
    return [
        figure.add_axes(((LEFT + place * (width + GAP)) / WIDTH, below / whole, width / WIDTH, height / whole))
        for place in range(count)
    ]


def _unit(largest: int) -> tuple[float, str]:
    unit = size(largest).split()[-1]
    return 1000.0 ** ("bytes", "kB", "MB", "GB", "TB", "PB").index(unit), unit


def _correlation(document: dict[str, Any]) -> "Figure":
    """A bar for each width and signal, best overall on top."""
    rows = sorted(document["correlations"], key=lambda row: row["overall"] or 0)
    widths = list(rows[0]["widths"])
    thick = 0.8 / len(widths)
    height = max(0.9, 0.16 * len(widths) * len(rows) + 0.1 * len(rows))
    figure, axes = figure_of(height, 0.85)
    # Names of signals are longer than the numbers that the margin is made for.
    left, box = 0.3 + 0.067 * max(len(row["signal"]) for row in rows), axes.get_position()
    axes.set_position((left / WIDTH, box.y0, (WIDTH - left - RIGHT) / WIDTH, box.height))
    for place, width in enumerate(widths):
        values = [row["widths"][width] or 0.0 for row in rows]
        spots = [line + 0.4 - (place + 0.5) * thick for line in range(len(rows))]
        axes.barh(spots, values, 0.9 * thick, color=COLOURS[int(width)], label=f"{width} bits")
    overall = [row["overall"] or 0.0 for row in rows]
    axes.plot(overall, range(len(rows)), "D", color=INK, markersize=4, linestyle="none", label="overall")
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["signal"] for row in rows])
    axes.set_xlim(min(-0.1, *overall, *(value or 0 for row in rows for value in row["widths"].values())) - 0.05, 1)
    axes.set_title("Rank correlation with the ground truth")
    axes.set_xlabel("Spearman's correlation over all experts")
    axes.grid(axis="x", color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    corner = (left / WIDTH, 0.1 / figure.get_figheight())
    figure.legend(
        loc="lower left", bbox_to_anchor=corner, ncols=len(widths) + 1, frameon=False, borderaxespad=0, borderpad=0
    )
    return figure


def _sensitivity(document: dict[str, Any]) -> "Figure":
    """A heatmap for each signal and one for the ground truth: each expert's place in the order of all experts."""
    shown = [(each["name"], each["layers"]) for each in document["signals"]]
    if document["truth"]:
        shown.insert(0, ("ground truth", document["truth"]["layers"]))
    grids = [(name, _ranks(layers, document["model"]["layers"])) for name, layers in shown]
    layers, experts = grids[0][1].shape
    columns = min(PANELS, len(grids))
    lines = math.ceil(len(grids) / columns)
    width = (WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    each = min(max(0.14 * layers, 0.6), 3.0)
    step = each + 0.4
    below = 0.95
    figure, first = figure_of(lines * step - 0.4, below)
    first.remove()
    height = figure.get_figheight()
    image: Any = None
    for number, (name, grid) in enumerate(grids):
        line, column = divmod(number, columns)
        corner = (LEFT + column * (width + GAP), below + (lines - 1 - line) * step)
        axes = figure.add_axes((corner[0] / WIDTH, corner[1] / height, width / WIDTH, each / height))
        axes.set_facecolor(PALE)
        image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=1)
        axes.set_title(name, fontsize=9, pad=4, parse_math=False)
        thin(axes.set_xticks, experts, width, 0.32)
        thin(axes.set_yticks, layers, each, 0.2)
        axes.tick_params(length=2, labelleft=column == 0, labelbottom=number + columns >= len(grids))
        if column == 0:
            axes.set_ylabel("layer")
        if number + columns >= len(grids):
            axes.set_xlabel("expert")
    bar_axes = figure.add_axes((LEFT / WIDTH, 0.38 / height, 0.3, 0.1 / height))
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.ax.set_xticklabels(["least", "", "most sensitive"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    figure.text(LEFT / WIDTH + 0.36, 0.38 / height, "rank among all experts of the model", va="bottom", color=FAINT)
    return figure


def _ranks(layers: dict[str, list[float]], count: int) -> "np.ndarray":
    """Ranks from 0 to 1 [layers, experts], equal values alike, NaN where there is no routed expert."""
    import numpy as np

    values = np.array([value for each in layers.values() for value in each])
    distinct, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    ranks = iter((middle[place] / max(len(values) - 1, 1)).tolist()) if len(distinct) > 1 else iter([0.5] * len(values))
    grid = np.full((count, max(map(len, layers.values()))), np.nan)
    for layer, each in layers.items():
        for index in range(len(each)):
            grid[int(layer), index] = next(ranks)
    return grid
