"""The plots of a publication, drawn for the width of a card on the Hub: 800 pixels, at twice the resolution.

Everything is placed in inches, so that 4 layers of 24 experts and 94 of 128 both get text of the same size. Colours are
told apart by every kind of colour vision and in grey. The same documents give the same bytes: files hold no date and no
version.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import Choice, maps, one_line, side_by_side, size, variants
from mopeq_hub.report.canvas import (
    CLEAR,
    COLOURS,
    DPI,
    FAINT,
    LEFT,
    OURS,
    PALE,
    RIGHT,
    WIDTH,
    figure_of,
    logarithmic,
    style,
    thin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

SPOTS = [(8, 0), (-8, 0)] + [
    (side * right, up * rise)
    for right, rise in ((10, 14), (16, 24), (24, 36), (32, 50), (42, 66))
    for up in (1, -1)
    for side in (1, -1)
]
"""Where a point's name may go, in 1/72 inch from it, nearest first."""


def draw(manifest: dict[str, Any], fidelity: dict[str, Any] | None, folder: Path) -> list[Path]:
    """Write the plots as PNG into `folder`/plots and return their paths; what was not measured is not drawn."""
    drawn: dict[str, Figure] = {}
    with style():
        drawn["sensitivity.png"] = maps.sensitivity(manifest)
        drawn["bits.png"] = maps.bits(manifest)
        drawn["bits_per_layer.png"] = maps.bits_per_layer(manifest)
        if fidelity is not None:
            drawn["size_fidelity.png"] = _size_fidelity(side_by_side(manifest, fidelity), variants(fidelity))
            if fidelity["layers"]["errors"]:
                drawn["layer_errors.png"] = _layer_errors(fidelity["layers"]["errors"])
        target = folder / "plots"
        target.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figure.savefig(target / name, metadata={"Software": None})
    return [target / name for name in drawn]


def _layer_errors(errors: list[float]) -> "Figure":
    """How far the hidden states are from the original's after each layer."""
    figure, axes = figure_of(2.0, 0.6)
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


def _size_fidelity(rows: list[Choice], variants: Collection[Choice]) -> "Figure":
    """Size against mean KL; the original, which differs from itself by nothing, as a line at its size.

    rows: as `side_by_side` gives them. variants: those of a repo with several budgets, which a line joins.
    """
    original, *compared = rows
    shown = [row for row in compared if row.kl is not None and math.isfinite(row.kl)]
    floor = min((row.kl for row in shown if row.kl), default=1e-3) / 10
    points = [(float(row.bytes), max(row.kl or 0, floor)) for row in shown]
    names = [(_shortened(one_line(row.name)), row is compared[-1]) for row in shown]
    ours = [row is compared[-1] or row in variants for row in shown]
    figure, axes = figure_of(3.2, 0.6)
    _size_axis(axes, original.bytes, max(row.bytes for row in rows))
    logarithmic(axes, [kl for _, kl in points] or [floor])
    axes.set_ylabel("mean KL divergence, nats")
    axes.axvline(original.bytes, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    joined = sorted(point for point, mine in zip(points, ours, strict=True) if mine)
    axes.plot(*zip(*joined, strict=True), color=OURS, linewidth=1, alpha=0.5)
    for point, mine in zip(points, ours, strict=True):
        axes.plot(*point, "D" if mine else "o", color=OURS if mine else COLOURS[4], markersize=8 if mine else 6.5)
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
