"""The plots of a publication, drawn for the width of a card on the Hub: 800 pixels, at twice the resolution.

The same documents give the same bytes: files hold no date and no version.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import counts, one_line, side_by_side, variants
from mopeq_hub.report.canvas import COLOURS, FAINT, INK, LEFT, OURS, PALE, RIGHT, WIDTH, blank, style, thin
from mopeq_hub.report.size_plot import size_fidelity

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABSENT: dict[str, Any] = {"facecolor": PALE, "hatch": "////", "edgecolor": "#c3c8d0", "linewidth": 0}
"""How a layer without routed experts looks."""
SIGNALS = {
    "hessian": "trace of the Hessian",
    "distortion": "share of the layer's output that is lost",
    "router": "place in the order of the layer's experts",
}


def draw(manifest: dict[str, Any], fidelity: dict[str, Any] | None, folder: Path) -> list[Path]:
    """Write the plots as PNG into `folder`/plots and return their paths; what was not measured is not drawn."""
    drawn: dict[str, Figure] = {}
    with style():
        drawn["sensitivity.png"] = _sensitivity(manifest)
        drawn["bits.png"] = _bits(manifest)
        drawn["bits_per_layer.png"] = _bits_per_layer(manifest)
        if fidelity is not None:
            drawn["size_fidelity.png"] = size_fidelity(side_by_side(manifest, fidelity), variants(fidelity))
            if fidelity["layers"]["errors"]:
                drawn["layer_errors.png"] = _layer_errors(fidelity["layers"]["errors"])
        target = folder / "plots"
        target.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figure.savefig(target / name, metadata={"Software": None})
    return [target / name for name in drawn]


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
    figure, axes = blank(plot_height, below)
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", **colours)
    axes.set_title(title)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    thin(axes.set_xticks, experts, WIDTH - LEFT - RIGHT, 0.32)
    thin(axes.set_yticks, layers, plot_height, 0.2)
    _separate(axes, grid, min(cell, plot_height / layers))
    _mark_absent(axes, grid, plot_height / layers)
    return figure, axes, image


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
    figure, axes = blank(2.4, 0.85)
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
    thin(axes.set_xticks, layers, WIDTH - LEFT - RIGHT, 0.32)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend(figure, manifest)
    return figure


def _layer_errors(errors: list[float]) -> "Figure":
    """How far the hidden states are from the original's after each layer."""
    figure, axes = blank(2.0, 0.6)
    axes.plot(range(len(errors)), [100 * error for error in errors], "o-", color=OURS, markersize=4, linewidth=1.2)
    axes.set_title("Error of the hidden states after each layer")
    axes.set_xlabel("layer")
    axes.set_ylabel("of the original's norm, %")
    axes.set_xlim(-0.6, len(errors) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=PALE, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    thin(axes.set_xticks, len(errors), WIDTH - LEFT - RIGHT, 0.32)
    return figure
