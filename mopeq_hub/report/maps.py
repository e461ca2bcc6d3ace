"""The plots of all experts: how sensitive each is, and how many bits it has, or each of its projections."""

from typing import TYPE_CHECKING, Any

from mopeq_hub.report import by_projection, counted, counts, listed, one_line, projections, split, widths_in
from mopeq_hub.report.canvas import COLOURS, FAINT, INK, LEFT, PALE, RIGHT, WIDTH, figure_of, thin

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABSENT: dict[str, Any] = {"facecolor": PALE, "hatch": "////", "edgecolor": "#c3c8d0", "linewidth": 0}
"""How a layer without routed experts looks."""
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}

SIGNALS = {
    "hessian": "trace of the Hessian",
    "distortion": "share of the layer's output that is lost",
    "router": "place in the order of the layer's experts",
    "frequency": "how often the router picks an expert",
    "hessian*frequency": "trace of the Hessian times how often the router picks an expert",
    "fisher": "KL that an expert alone causes at the narrowest width",
}


def sensitivity(manifest: dict[str, Any]) -> "Figure":
    """How sensitive each expert is."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    grid = _empty(manifest)
    for layer in manifest["experts"]:
        grid[layer["layer"], : len(layer["sensitivity"])] = layer["sensitivity"]
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    spread = {"vmin": low, "vmax": high} if high > low else {"vmin": low - 0.5, "vmax": low + 0.5}
    figure, _, image = _heatmap(grid, manifest, "Sensitivity of each expert", 1.05, cmap="viridis", **spread)
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
    said = f"signal: {named}"
    figure.text(LEFT / WIDTH + 0.475, 0.48 / height, said, va="center", parse_math=False, wrap=True)
    return figure


def bits(manifest: dict[str, Any]) -> "Figure":
    """The bit map; with the width written into each cell that is large enough.

    Where the projections of experts differ, each layer has a row of cells for each: gate, up and down.
    """
    import numpy as np
    from matplotlib.colors import BoundaryNorm, ListedColormap

    names = projections(manifest)
    rows = len(names) if by_projection(manifest) else 1
    grid = _empty(manifest, rows)
    for layer in manifest["experts"]:
        of_each = zip(*(split(each, names) for each in layer["bits"]), strict=True)
        for row, widths in zip(range(rows), of_each, strict=False):
            grid[layer["layer"] * rows + row, : len(widths)] = widths
    title = "Bits of each expert" if rows == 1 else f"Bits of each expert: {listed([*names])}, from top to bottom"
    colours = ListedColormap(list(COLOURS.values()))
    norm = BoundaryNorm([1.5, 2.5, 3.5, 6, 12], len(COLOURS))
    figure, axes, _ = _heatmap(grid, manifest, title, 0.85, cmap=colours, norm=norm)
    if (WIDTH - LEFT - RIGHT) / grid.shape[1] >= 0.16 and grid.shape[0] <= 30:
        for (row, expert), width in np.ndenumerate(grid):
            if np.isfinite(width):
                place, font = (row + 0.5) / rows - 0.5, 8 if rows == 1 else 7
                axes.text(expert, place, f"{width:.0f}", **CENTRED, fontsize=font, color=_on(width))
    _legend(figure, manifest)
    return figure


def bits_per_layer(manifest: dict[str, Any]) -> "Figure":
    """How many experts, or projections, of each layer have each width."""
    from matplotlib.ticker import MaxNLocator

    layers = manifest["model"]["layers"]
    figure, axes = figure_of(2.4, 0.85)
    floors = dict.fromkeys(range(layers), 0)
    widths = {layer["layer"]: widths_in(manifest, layer) for layer in manifest["experts"]}
    tallest = max(map(len, widths.values()))
    thick = min(0.86, 0.9 * layers / (WIDTH - LEFT - RIGHT))
    for width in counts(manifest):
        for number, present in widths.items():
            count = present.count(width)
            axes.bar(number, count, thick, floors[number], color=COLOURS[width], linewidth=0)
            if layers <= 24 and count >= tallest * 0.08:
                middle = floors[number] + count / 2
                axes.text(number, middle, str(count), **CENTRED, fontsize=8, color=_on(width))
            floors[number] += count
    for number in (number for number, count in floors.items() if count == 0):
        axes.bar(number, tallest, thick, **ABSENT)
    axes.set_title("Widths in each layer")
    axes.set_xlabel("layer")
    axes.set_ylabel(counted(manifest, 2))
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(0, tallest)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)
    thin(axes.set_xticks, layers, WIDTH - LEFT - RIGHT, 0.32)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(figure, manifest)
    return figure


def _empty(manifest: dict[str, Any], rows: int = 1) -> "np.ndarray":
    """NaN as an array [layers * rows, experts]: what stays so is no routed expert's."""
    import numpy as np

    columns = max(len(layer["bits"]) for layer in manifest["experts"])
    return np.full((manifest["model"]["layers"] * rows, columns), np.nan)


def _heatmap(
    grid: "np.ndarray", manifest: dict[str, Any], title: str, below: float, **colours: Any
) -> "tuple[Figure, Axes, Any]":
    """The grid as an image: layers downwards, experts to the right, cells as square as the page allows.

    Coordinates are layers and experts, whatever number of rows a layer has.
    """
    layers, experts = manifest["model"]["layers"], grid.shape[1]
    rows = len(grid) // layers
    cell = (WIDTH - LEFT - RIGHT) / experts
    # A layer of several rows is taller, and each of its rows still lower than wide.
    height = min(max(cell, 0.045), 0.3) * (1 + rows) / 2
    plot_height = min(max(layers * height, 0.9), 6.5)
    figure, axes = figure_of(plot_height, below)
    extent = (-0.5, experts - 0.5, layers - 0.5, -0.5)
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", extent=extent, **colours)
    axes.set_title(title)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    thin(axes.set_xticks, experts, WIDTH - LEFT - RIGHT, 0.32)
    thin(axes.set_yticks, layers, plot_height, 0.2)
    _separate(axes, layers, experts, rows, min(cell, plot_height / len(grid)))
    _mark_absent(axes, manifest, experts, plot_height / layers)
    return figure, axes, image


def _separate(axes: "Axes", layers: int, experts: int, rows: int, cell: float) -> None:
    """White lines between cells that are large enough (`cell`, inches) to be seen one by one; thinner ones between the
    rows of a layer."""
    axes.tick_params(length=2)
    if cell < 0.1:
        return
    axes.set_xticks([edge - 0.5 for edge in range(1, experts)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, layers)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8 if rows == 1 else 2)
    axes.tick_params(which="minor", length=0)
    for row in range(layers * rows):
        if row % rows:
            axes.axhline(row / rows - 0.5, color="white", linewidth=0.5)


def _mark_absent(axes: "Axes", manifest: dict[str, Any], experts: int, row: float) -> None:
    """Hatch the layers without routed experts, and say so where a row (`row`, inches) has room for words."""
    present = {layer["layer"] for layer in manifest["experts"]}
    for layer in sorted(set(range(manifest["model"]["layers"])) - present):
        axes.axhspan(layer - 0.5, layer + 0.5, **ABSENT, zorder=2)
        if row >= 0.17:
            box = {"facecolor": PALE, "edgecolor": "none", "pad": 1.5}
            axes.text((experts - 1) / 2, layer, "no routed experts", **CENTRED, fontsize=8, color=FAINT, bbox=box)


def _legend(figure: "Figure", manifest: dict[str, Any]) -> None:
    """The widths with their counts, and what hatching means, along the lower edge."""
    from matplotlib.patches import Patch

    handles: list[Patch] = []
    for width, count in counts(manifest).items():
        # Of many widths the first says what is counted; there is no room for more.
        noun = "" if handles and len(counts(manifest)) > 3 else f" {counted(manifest, count)}"
        handles.append(Patch(facecolor=COLOURS[width], label=f"{width} bits ({count}{noun})"))
    if len(manifest["experts"]) < manifest["model"]["layers"]:
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


def _on(width: float) -> str:
    """The colour of text on a width's colour."""
    return INK if width < 4 else "white"
