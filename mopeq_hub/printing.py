"""What a command prints: bars while it works, then tables and lines, or JSON."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mopeq_hub.progress import Bars, Lines, Progress, Quiet
from mopeq_hub.recipe import RUNNING

if TYPE_CHECKING:
    from mopeq_hub.delivery import Publication
    from mopeq_hub.planning import Plan
    from mopeq_hub.republishing import Outcome
    from mopeq_hub.variants import Variants


def progress_for(as_json: bool) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing beside JSON."""
    if as_json:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


def console() -> Any:
    """Rich's console, which leaves numbers and names in the colour they have."""
    from rich.console import Console

    return Console(highlight=False)


def show_publication(publication: "Publication", dry_run: bool, as_json: bool) -> None:
    """What came of it, on the screen and on the step summary of a GitHub action."""
    from mopeq_hub.report import summary

    if as_json:
        show_json(asdict(publication))
        return
    if not publication.changed:
        _tell_unchanged(publication)
    else:
        where = f"{publication.destination} (dry run: nothing was pushed)" if dry_run else publication.destination
        console().print(summary.result_lines(publication.manifest, publication.fidelity, where))
        _tell_summary(publication, where)


def show_variants(variants: "Variants", dry_run: bool, as_json: bool) -> None:
    """The same of several budgets: what came of each, all of them in a table, and what is in main."""
    from mopeq_hub.report import summary

    if as_json:
        show_json(asdict(variants))
        return
    for publication in variants.publications.values():
        if publication.changed:
            print(f"{publication.destination} {'would hold' if dry_run else 'holds'} {publication.name}")
        else:
            _tell_unchanged(publication)
    console().print(summary.variants_table(variants.main.fidelity or {}))
    show_publication(variants.main, dry_run, as_json)


def _tell_unchanged(publication: "Publication") -> None:
    print(f"{publication.destination} already holds {publication.name}: nothing to do")
    if publication.note:
        print(publication.note)


def show_plans(model: str, plans: dict[str, "Plan"], as_json: bool) -> None:
    """What a publication would be; of several budgets, by name, a row for each."""
    from mopeq_hub.report import summary

    planned = next(iter(plans.values()))
    if as_json:
        documents = {name: _document(each) for name, each in plans.items()}
        shared = {part: _document(planned)[part] for part in ("fidelity", "needs")}
        show_json({"variants": documents, **shared} if len(plans) > 1 else _document(planned))
        return
    choices, manifest = planned.choices, planned.manifest
    if len(plans) > 1 and manifest:
        choices = [*choices[:-1], *({**each.choices[-1], "name": name} for name, each in plans.items())]
    console().print(summary.plan_table(model, choices, manifest if len(plans) == 1 else None))
    print(summary.needs_line(planned.needs) + ("; each budget in turn" if len(plans) > 1 else ""))
    if planned.fidelity:
        print(summary.cost_line(planned.fidelity))
    if manifest is None:
        print(_without_map(planned.recipe.signal))
    elif len(plans) == 1:
        print(summary.spread_line(manifest))
        console().print(summary.Heatmap(manifest))


def _without_map(signal: str) -> str:
    if signal not in RUNNING:
        return "The bit map needs the experts' sensitivities: give --profile, or name a folder that holds the model."
    return (
        f"The bit map comes of running the model, by the signal {signal}: `publish --dry-run` does that. "
        "--signal distortion needs weights alone."
    )


def _document(planned: "Plan") -> dict[str, Any]:
    cost, needs = planned.fidelity and asdict(planned.fidelity), asdict(planned.needs)
    recipe = planned.recipe.to_dict()
    return {
        "recipe": recipe, "choices": planned.choices, "manifest": planned.manifest, "fidelity": cost, "needs": needs
    }  # fmt: skip


def show_outcome(outcome: "Outcome") -> None:
    """What came of one entry of a catalog, as soon as it is known; failures go where errors go."""
    from mopeq_hub.report import catalog

    if outcome.state == "failed":
        print(catalog.failure(outcome.number, outcome.document()), file=sys.stderr, flush=True)
    else:
        print(catalog.line(outcome.document()), flush=True)
    if outcome.publication and outcome.publication.changed:
        _tell_summary(outcome.publication, outcome.to)


def show_outcomes(name: str, document: dict[str, Any], as_json: bool) -> None:
    """All of a catalog's entries: as JSON where it is asked for, and on the page of a GitHub workflow's run."""
    from mopeq_hub.report import catalog

    to_step_summary(lambda: catalog.step_summary(name, document["entries"]))
    if as_json:
        show_json(document)
    elif not document["entries"]:
        print(f"{name} is an empty catalog: nothing to do")


def _tell_summary(publication: "Publication", where: str) -> None:
    from mopeq_hub.report import summary
    from mopeq_hub.report.catalog import page_of

    page, space_page = page_of(where), page_of(where, "spaces/") if publication.space_commit else None
    to_step_summary(lambda: summary.step_summary(publication.manifest, publication.fidelity, where, page, space_page))


def to_step_summary(text: Callable[[], str]) -> None:
    """Add to the page of a GitHub workflow's run, where this is one."""
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(page, "a", encoding="utf-8") as file:
            file.write(text())


def show(document: dict[str, Any], as_json: bool, text: Callable[[], Any]) -> None:
    """`text()`, a string or something for Rich; the document where JSON is asked for, or there is no text."""
    shown = None if as_json else text()
    if shown is None:
        show_json(document)
    elif isinstance(shown, str):
        # Not through the console, which would break a long path over two lines.
        print(shown)
    else:
        console().print(shown)


def show_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1))
