"""What people read of a study: the page study.md with its plots, and a table on a terminal, all from study.json's
content (`document`) alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.report import Markdown, code, hub_address, link, listed, number, one_line, percent, size, study_plots
from mopeq_hub.report.benchmarks import figure
from mopeq_hub.report.templating import render

if TYPE_CHECKING:
    from rich.table import Table

OWN_SIZE = "at their own size"
"""What has no budget: uniform widths, and k-means."""


def write(document: dict[str, Any], folder: Path) -> None:
    """Write study.md and plots/*.png into `folder`."""
    study_plots.draw(document, folder / "plots")
    source, asked = document["source"], document["questions"]
    page = hub_address(source["name"]) if source["kind"] == "hub" else None
    text = render(
        "study.md.jinja",
        {"listed": lambda values, last: listed([str(value) for value in values], last), "percent": percent},
        document=document,
        title=source["name"],
        source=link(code(source["name"]), page),
        questions=Markdown("the bundled questions") if asked["name"] == "bundled" else code(asked["name"]),
        accuracy=document["original"]["accuracy"] is not None,
        sections=[
            {"title": title, "rows": [_cells(row, document) for row in rows]} for title, rows in sections(document)
        ],
        stand_ins=[
            (each["name"], each["signal"]["stand_in"]) for each in document["signals"] if "stand_in" in each["signal"]
        ],
        benchmarks=_benchmarks(document),
        correlations=[_correlation_cells(row) for row in document["correlations"]],
    )
    (folder / "study.md").write_text(text, "utf-8")


def table(document: dict[str, Any]) -> "Table":
    """Methods by budget, the closest to the original first, for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(one_line(document["source"]["name"])), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.title_justify = drawn.caption_justify = "left"
    drawn.add_column(overflow="fold")
    headings = ("bpw", "KL", "of uniform", "top-1", "accuracy")
    for heading in headings if document["original"]["accuracy"] is not None else headings[:-1]:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for title, rows in sections(document):
        drawn.add_row(Text(title, style="bold"))
        for row in rows:
            # Sizes and perplexities are on the page.
            name, bpw, _, kl, share, top1, _, *accuracies = _cells(row, document)
            drawn.add_row(*map(Text, (name, bpw, kl.replace(" ± ", "±"), share, top1, *accuracies)))
        drawn.add_section()
    drawn.caption = Text("\n".join(map(one_line, _remarks(document))), style="default not italic")
    return drawn


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """What the table on a terminal does not show."""
    for row in document["correlations"]:
        name, *_, cell = _correlation_cells(row)
        yield f"{name}: rank correlation with the ground truth {cell}"
    if document["truth"] is None:
        yield f"without the ground truth: {document['truth_left_out']}"
    for each in document["left_out"]:
        yield f"without the signal {each['name']}: {each['reason']}"


def sections(document: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A heading for each budget, and one for what has none, with its rows by rising KL."""
    for budget in [*document["budgets"], None]:
        rows = sorted((row for row in document["rows"] if row["budget"] == budget), key=lambda row: row["kl"])
        if rows:
            yield (f"within {budget}" if budget else OWN_SIZE), rows


def _cells(row: dict[str, Any], document: dict[str, Any]) -> list[str]:
    spread = f" ± {number(row['kl_std'])}" if row["kl_std"] is not None else ""
    cells = [
        row["method"],
        f"{row['experts_bpw']:.2f}",
        size(row["experts_bytes"]),
        number(row["kl"]) + spread,
        "–" if row["of_uniform"] is None else f"{row['of_uniform']:.2f}",
        percent(row["top1_agreement"]),
        f"{row['perplexity_ratio']:.4f}",
    ]
    if document["original"]["accuracy"] is not None:
        cells.append("–" if row["accuracy"] is None else percent(row["accuracy"]))
    return cells


def _benchmarks(document: dict[str, Any]) -> dict[str, Any] | None:
    """A table of what each bit map answered, the original's first, with a column for each metric; None without any."""
    answered = document.get("benchmarks")
    if answered is None:
        return None
    columns = [(name, metric) for name, metrics in answered["original"].items() for metric in metrics]
    shown = [("original", "–", answered["original"])]
    for row, found in zip(document["rows"], answered["rows"], strict=True):
        if found is not None:
            within = f", {row['budget']}" if row["budget"] else ""
            shown.append((row["method"] + within, f"{row['experts_bpw']:.2f}", found))
    return {
        "columns": [(name, code(metric), *answered["samples"][name].values()) for name, metric in columns],
        "rows": [
            [
                method,
                bpw,
                *("–" if metric not in found[name] else figure(found[name][metric]) for name, metric in columns),
            ]
            for method, bpw, found in shown
        ],
        "not_run": answered["not_run"],
        "version": answered["version"],
    }


def _correlation_cells(row: dict[str, Any]) -> list[str]:
    values = [*row["widths"].values(), row["overall"]]
    return [row["signal"], *("–" if value is None else f"{value:.2f}" for value in values)]
