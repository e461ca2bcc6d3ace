"""Tabs in which every expert is a cell to click: by its bits, and by its sensitivity."""

from collections import Counter
from functools import partial

import gradio as gr
import numpy as np
from expert_numbers import Experts
from heatmap import COLOURS, SCALE, Heatmap, by_amount, by_width, split

STRIPES = " The stripes of an expert are its {} projection, from top to bottom."
HOW = "One row a layer, the first at the top; one column an expert. Click an expert, or choose it by number."


def bit_map(experts: Experts) -> tuple[Heatmap, str]:
    """The picture of the widths, and its legend as HTML."""
    rows = {number: layer["bits"] for number, layer in experts.layers.items()}
    parted = any(not isinstance(widths, int) for row in rows.values() for widths in row)
    names = tuple(experts.projections)
    counts = Counter(
        width for row in rows.values() for each in row for width in (split(each, names) if parted else [each])
    )
    noun = "projection" if parted else "expert"
    words = " ".join(
        f'<span><i style="background:{COLOURS.get(width, "#808080")}"></i>{width} bits: {_number(count, noun)}</span>'
        for width, count in sorted(counts.items())
    )
    how = HOW + (STRIPES.format(f"{', '.join(names[:-1])} and {names[-1]}") if parted else "")
    legend = f'<p class="legend">{words}</p><p>{how}</p>{_rest(experts.rest)}'
    return Heatmap(rows, partial(by_width, names=names)), legend


def _rest(widths: dict[str, int]) -> str:
    """HTML: how many of the layers outside the experts have which width, where each has its own."""
    found = [f"{_number(count, 'layer')} at {width} bits" for width, count in sorted(Counter(widths.values()).items())]
    return f"<p>Linear layers outside the experts: {', '.join(found)}.</p>" if found else ""


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def sensitivities(experts: Experts) -> tuple[Heatmap, str]:
    """The picture of the sensitivities, and its legend as HTML. Outliers are as dark as the 99th percentile."""
    rows = {number: layer["sensitivity"] for number, layer in experts.layers.items()}
    least, most = np.percentile([value for row in rows.values() for value in row], [1, 99])
    bar = f'<i class="scale" style="background:linear-gradient(to right,{",".join(SCALE)})"></i>'
    words = f"<span>{least:.4g}</span>{bar}<span>{most:.4g}</span>"
    return Heatmap(rows, by_amount(least, most)), f'<p class="legend">sensitivity {words}</p><p>{HOW}</p>'


def expert_tab(name: str, experts: Experts, heatmap: Heatmap, legend: str, api_name: str | None) -> None:
    """Put a picture of all experts on the page, with what is known of the one that is chosen below it.

    api_name: of the function that describes an expert; None where another tab has given it a name.
    """
    layers = list(experts.layers)

    def show(layer: int, expert: int) -> tuple[object, str]:
        """Everything about one expert, as HTML, and the picture of all experts with this one framed."""
        layer, expert = checked(experts, layer, expert)
        return heatmap.draw(layer, expert), experts.described(layer, expert)

    def clicked(event: gr.SelectData) -> tuple[int, int]:
        found = heatmap.at(*event.index)
        if found is None:
            raise gr.Error("There is no expert at this place.", print_exception=False)
        return found

    gr.HTML(legend)
    with gr.Row():
        layer = gr.Dropdown(layers, value=layers[0], label="Layer", min_width=120)
        expert = gr.Number(0, label="Expert", precision=0, minimum=0, min_width=120)
    picture = gr.Image(
        heatmap.draw(layers[0], 0),
        alt_text=f"{name}: one row a layer, one column an expert",
        format="png",
        image_mode="RGBA",
        interactive=False,
        show_label=False,
        buttons=[],
        elem_classes="heatmap",
    )
    details = gr.HTML("<p>Choose an expert.</p>", elem_classes="expert")
    visible = {"api_name": api_name} if api_name else {"api_visibility": "private"}
    gr.on([layer.input, expert.input], show, [layer, expert], [picture, details], **visible, show_progress="hidden")
    chosen = picture.select(clicked, None, [layer, expert], api_visibility="private", show_progress="hidden")
    chosen.then(show, [layer, expert], [picture, details], api_visibility="private", show_progress="hidden")


def checked(experts: Experts, layer: int, expert: int) -> tuple[int, int]:
    """A layer and an expert of it that exist."""
    if layer not in experts.layers:
        raise gr.Error("There is no such layer with experts.", print_exception=False)
    count = len(experts.layers[layer]["bits"])
    if not isinstance(expert, int | float) or not 0 <= expert < count:
        raise gr.Error(f"The experts of layer {layer} are 0 to {count - 1}.", print_exception=False)
    return layer, int(expert)
