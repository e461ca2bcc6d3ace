"""What a person sees at once: tables and the bit map on a terminal, and a workflow run's page.

Rich is used with styled text only, never with its own markup, so that a name in brackets stays a name.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import (
    Widths,
    benchmarks,
    by_projection,
    code,
    counted,
    counts,
    escape,
    hub_address,
    link,
    moment,
    number,
    one_line,
    percent,
    projections,
    side_by_side,
    size,
    split,
    table_rows,
    this_variant,
    variants,
)
from mopeq_hub.report.spread import in_words

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from mopeq_hub.fidelity.cost import Cost
    from mopeq_hub.needs import Needs

INK = {2: "black on yellow", 3: "black on bright_cyan", 4: "white on blue", 8: "white on magenta"}
"""Colours of the terminal's own palette, so that its theme keeps them legible."""

COLUMNS = ("", "size", "bpw", "KL", "top-1", "perplexity ratio", "accuracy")
PLOTS = ("bits", "sensitivity")
"""Those of the publication's plots that a workflow run's page shows."""
BAR = 40
"""Characters of a layer's bar where its experts do not fit on a line."""


def plan_table(name: str, planned: list[dict[str, Any]], manifest: dict[str, Any] | None) -> "Table":
    """Sizes of the choices before any of them is made: dicts of name, bytes and experts_bpw, the original first.

    `manifest` is what the recipe would give, where sensitivities are known; its choice comes last.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(one_line(name)), title_justify="left", caption_justify="left")
    if manifest:
        table.caption = _counts_text(manifest)
    table.add_column()
    for heading in ("size", "of the original", "bpw"):
        table.add_column(heading, justify="right")
    for position, choice in enumerate(planned, 1):
        share = choice["bytes"] / planned[0]["bytes"] if planned[0]["bytes"] else 1
        bpw = "–" if choice["experts_bpw"] is None else f"{choice['experts_bpw']:.2f}"
        ours = manifest is not None and position == len(planned)
        table.add_row(choice["name"], size(choice["bytes"]), percent(share), bpw, style="bold" if ours else None)
    return table


def spread_line(manifest: dict[str, Any]) -> str:
    """How well the signal tells the experts apart."""
    return in_words(manifest["spread"])


def needs_line(needs: "Needs") -> str:
    """What publishing takes of the machine and the network."""
    disk = f"{size(needs.disk)} of disk" + (
        f" and {size(needs.cache)} in the Hub client's cache" if needs.cache else ""
    )
    way = "; shards pass through, the disk does not hold them all" if needs.passing else ""
    moved = f"{size(needs.download)} to download, {size(needs.upload)} to upload"
    return f"publishing: up to {size(needs.memory)} of memory, {disk}, {moved}{way}"


def cost_line(cost: "Cost") -> str:
    """What the proof takes where memory does not hold the model, before it is begun."""
    work = f"about {cost.tokens:,} tokens and {cost.flops / 1e12:,.3g} TFLOP"
    memory = f"{size(cost.block_bytes)} for the largest block and {size(cost.hidden_bytes)} for hidden states"
    return f"fidelity, block by block: {work}, in {memory}; --fidelity-tokens bounds it"


def _counts_text(manifest: dict[str, Any]) -> "Text":
    """How many experts, or projections, have each width, each in its colour."""
    from rich.text import Text

    parts = [Text(f" {count} at {width} bits ", style=INK[width]) for width, count in counts(manifest).items()]
    return Text(f"{counted(manifest, 2)}: ", style="default not italic").append_text(Text(" ").join(parts))


class Heatmap:
    """The bit map for a terminal: a digit for each expert, on its width's colour where there is colour.

    A line for each layer, and one for each of gate, up and down where the projections of experts differ. Where a line
    has no room for a layer's experts, it shows a bar of how many have each width.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        self._rows: dict[int, list[Widths]] = {layer["layer"]: layer["bits"] for layer in manifest["experts"]}
        self._layers = manifest["model"]["layers"]
        self._names = projections(manifest)
        self._parts = self._names if by_projection(manifest) else ("",)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from rich.text import Text

        number = len(f"layer {self._layers - 1} ")
        part = max(len(f"{name} ") for name in self._parts) if len(self._parts) > 1 else 0
        fits = number + part + max(map(len, self._rows.values())) <= options.max_width
        for layer in range(self._layers):
            head = f"layer {layer}".ljust(number)
            if layer not in self._rows:
                yield Text(head, no_wrap=True).append("no routed experts", style="dim")
                continue
            for place, name in enumerate(self._parts):
                line = Text(head + name.ljust(part), no_wrap=True, overflow="ellipsis")
                bits = [split(widths, self._names)[place] for widths in self._rows[layer]]
                head = " " * number
                yield _digits(line, bits) if fits else line.append_text(_bar(bits))


def _digits(line: "Text", bits: list[int]) -> "Text":
    """The line with a digit for each width."""
    for width in bits:
        line.append(str(width), style=INK[width])
    return line


def _bar(bits: list[int]) -> "Text":
    """How a layer's experts share out over the widths: digits in proportion, then the counts."""
    from rich.text import Text

    bar, ordered = Text(), sorted(bits)
    for place in range(BAR):
        width = ordered[place * len(ordered) // BAR]
        bar.append(str(width), style=INK[width])
    shares = (f"{bits.count(width)}x{width}" for width in sorted(set(bits)))
    return bar.append("  " + " ".join(shares))


def variants_table(fidelity: dict[str, Any]) -> "Table":
    """The variants of a repo with several budgets, the smallest first, and which of them main holds."""
    from rich.table import Table

    table, this = Table(), this_variant(fidelity)
    for heading in ("", "size", "bpw", "KL", "top-1", "accuracy"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, size_of, bpw, kl, top1, _, accuracy in table_rows(variants(fidelity)):
        ours = name == this
        shown = f"{name}, recommended" if ours else name
        table.add_row(shown, size_of, bpw, kl, top1, accuracy, style="bold" if ours else None)
    return table


def result_lines(manifest: dict[str, Any], fidelity: dict[str, Any] | None, where: str | None = None) -> "Table":
    """A publication in a few lines: where it is, its size, bits per weight, and how close it is to the original."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in _results(manifest, fidelity, where):
        grid.add_row(Text(name, style="bold"), Text(value))
    return grid


def _results(manifest: dict[str, Any], fidelity: dict[str, Any] | None, where: str | None) -> Iterator[tuple[str, str]]:
    sizes = manifest["sizes"]
    yield "source", one_line(f"{manifest['source']['name']} at {manifest['source']['commit'][:12]}")
    yield "publication", one_line(manifest["publication"])
    if where:
        yield "where", one_line(where)
    if made := manifest.get("provenance"):
        by, run = f"by {made['who']} " if made["who"] else "", f", run {made['run']}" if made["run"] else ""
        yield "made", one_line(f"{by}on {moment(made['when'])}{run}")
    yield "size", f"{size(sizes['published_bytes'])}, the original has {size(sizes['source_bytes'])}"
    bpw, all_bpw = f"{sizes['experts_bpw']:.2f}", f"{sizes['quantized_bpw']:.2f}"
    yield "bits per weight", f"{bpw} of the experts, {all_bpw} of all that is quantized"
    if fidelity is None:
        yield "fidelity", "not measured"
        return
    mean, p99 = number(fidelity["kl"]["mean"]), number(fidelity["kl"]["p99"])
    yield "KL divergence", f"{mean} nats on average, {p99} at the 99th percentile"
    yield "top-1 agreement", percent(fidelity["top1_agreement"])
    accuracy = fidelity["accuracy"]
    if accuracy:
        yield "accuracy", f"{percent(accuracy['published'])}, the original has {percent(accuracy['original'])}"
    yield from benchmarks.lines(fidelity)
    if fidelity["method"] == "blocks":
        yield "measured", "block by block: memory does not hold the original"


def step_summary(
    manifest: dict[str, Any],
    fidelity: dict[str, Any] | None,
    where: str,
    page: str | None = None,
    space_page: str | None = None,
) -> str:
    """The result as Markdown for a workflow run's page. `where`: the publication's repo or folder. `page`: its address
    where it is on the Hub, from where the plots come; `space_page`: its Space's."""
    source = manifest["source"]
    source_page = hub_address(source["name"]) if source["kind"] == "hub" else None
    space = f" Its Space is {link(code(where), space_page)}." if space_page else ""
    cells = [[escape(cell) for cell in row] for row in table_rows(side_by_side(manifest, fidelity))]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    parts = ", by projection" if by_projection(manifest) else ""
    lines = [
        f"### {code(source['name'])} published",
        f"From {link(code(source['name']), source_page)} at {code(source['commit'][:12])} "
        f"to {link(code(where), page or where)}, as {code(manifest['publication'])}.{space}",
        f"| {' | '.join(COLUMNS)} |\n|{' --- |' + ' ---: |' * (len(COLUMNS) - 1)}\n{rows}",
        f"Routed experts{parts}: {', '.join(f'{count} at {width} bits' for width, count in counts(manifest).items())}.",
    ]
    if found := [f"- {escape(name)}: {escape(words)}" for name, words in benchmarks.lines(fidelity)]:
        lines.append("\n".join(["Benchmarks:", "", *found]))
    if page:
        # A repo that is private shows nobody its plots here.
        lines.append(" ".join(f"![{name}]({page}/resolve/main/plots/{name}.png)" for name in PLOTS))
    return "\n\n".join(lines) + "\n"
