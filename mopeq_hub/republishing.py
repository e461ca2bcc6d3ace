"""What of a catalog is stale, and why; and publishing just that again."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from mopeq_hub import github, jobs, workplace
from mopeq_hub.catalog import BrokenEntry, Entry, chosen, name_of, read_catalog
from mopeq_hub.check import check
from mopeq_hub.engines import Engine
from mopeq_hub.engines.choice import check_options, engine_named
from mopeq_hub.errors import MopeqError, UsageError, described
from mopeq_hub.hub import Destination, destination_for
from mopeq_hub.manifest import MANIFEST_NAME, publication_name
from mopeq_hub.model import open_model
from mopeq_hub.pipeline import Publication, publish
from mopeq_hub.planning import settled_for, with_given
from mopeq_hub.progress import Progress
from mopeq_hub.questions import read_questions
from mopeq_hub.recipe import BEST, FORMAT_VERSION, MEASURED, Recipe
from mopeq_hub.redact import redact
from mopeq_hub.source import open_source
from mopeq_hub.untrusted import read_object

FOREIGN = "it brings no code and no pickles"
"""The check that fails over files that are not the publication's, which publishing it again would leave there."""
MATRIX_LIMIT = 256
"""How many jobs GitHub takes in one matrix; what is left is found by the next run."""

State = Literal["fresh", "stale", "republished", "failed"]
Publisher = Callable[[Entry, bool], Publication | None]
"""Publishes an entry; True where its destination seems to hold it already. Gives None where that is not known here."""


@dataclass(frozen=True)
class Outcome:
    """What came of one entry. number: its place in the catalog. reasons: why it was stale, in words. commit: of the
    new publication. error: one line, where it failed."""

    number: int
    to: str
    model: str
    state: State
    reasons: tuple[str, ...] = ()
    commit: str | None = None
    error: str | None = None
    publication: Publication | None = None

    def document(self) -> dict[str, Any]:
        """As `--json` tells it."""
        return {
            "to": self.to, "model": self.model, "state": self.state, "reasons": list(self.reasons),
            "commit": self.commit, "error": self.error,
        }  # fmt: skip


def document(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """All outcomes for a machine, and what is stale as the matrix of a GitHub job."""
    told = list(outcomes)
    stale = [{"to": each.to, "model": each.model} for each in told if each.state == "stale"]
    return {"entries": [each.document() for each in told], "matrix": {"include": stale[:MATRIX_LIMIT]}}


def republish(
    catalog: str,
    only: Iterable[str],
    publisher: Publisher | None,
    say: Callable[[Outcome], None],
    *,
    issue: bool = False,
) -> list[Outcome]:
    """Look at a catalog's entries one after the other, and publish what is stale; without a publisher only look.

    Whatever is wrong with one is in its outcome, and the others are done; each is told to `say` when it is known.
    only: destinations of the entries to look at, all where there are none. issue: keep GitHub's issue about it.
    Raises UsageError and MopeqError on a catalog that cannot be read, or an issue that cannot be kept.
    """
    only = list(only)
    if issue and only:
        raise UsageError("--issue is about the whole catalog", "leave --only out")
    try:
        entries = chosen(read_catalog(catalog), only)
    except MopeqError as error:
        if issue:
            github.keep_issue(name_of(catalog), [], str(error))
        raise
    outcomes = []
    for entry in entries:
        outcomes.append(_outcome(entry, publisher))
        say(outcomes[-1])
    if issue:
        github.keep_issue(name_of(catalog), [outcome.document() for outcome in outcomes])
    return outcomes


def schedule(
    catalog: str,
    only: Iterable[str],
    when: str | None,
    say: Callable[[Outcome], None],
    *,
    flavor: str | None = None,
    timeout: str | None = None,
) -> jobs.Schedule:
    """Have the Hub do that time and again. Raises MopeqError, and changes nothing, unless every entry is in order; each
    that is not is told to `say`."""
    if when is None:
        raise UsageError("--on-hub needs a --schedule", "add --schedule @daily")
    entries = chosen(read_catalog(catalog), only)
    broken = [entry for entry in entries if isinstance(entry, BrokenEntry)]
    for entry in broken:
        say(_outcome(entry, None))
    if broken:
        raise MopeqError(
            f"nothing was scheduled: {len(broken)} of {len(entries)} entries are not in order", "see above"
        )
    whole = [entry for entry in entries if isinstance(entry, Entry)]
    return jobs.schedule(whole, name_of(catalog), when, flavor=flavor, timeout=timeout)


@contextmanager
def publisher_named(
    engine: str,
    progress: Progress,
    *,
    dry_run: bool,
    sign: str | None = None,
    ray_address: str | None = None,
    flavor: str | None = None,
    timeout: str | None = None,
) -> Iterator[Publisher | None]:
    """Who publishes, by the name of an engine; `jobs` lets the Hub's machines do each entry. Nobody in a dry run."""
    check_options(engine, ray_address=ray_address, flavor=flavor, timeout=timeout)
    if dry_run:
        yield None
        return
    if engine == "jobs":
        if sign:
            raise UsageError("a job on the Hub has neither an OIDC identity nor your key", "sign with --engine local")

        def as_job(entry: Entry, again: bool) -> None:
            jobs.republish([entry], progress.say, flavor=flavor, timeout=timeout)

        yield as_job
        return
    with engine_named(engine, ray_address) as chosen:
        yield _publisher(chosen, sign, progress)


def _publisher(engine: Engine, sign: str | None, progress: Progress) -> Publisher:
    def here(entry: Entry, again: bool) -> Publication:
        return publish(
            entry.model, entry.to, entry.recipe, questions=entry.questions, space=entry.space, private=entry.private,
            again=again, sign=sign, engine=engine, progress=progress,
        )  # fmt: skip

    return here


def _outcome(entry: Entry | BrokenEntry, publisher: Publisher | None) -> Outcome:
    outcome = Outcome(entry.number, entry.to, entry.model, "fresh")
    if isinstance(entry, BrokenEntry):
        return replace(outcome, state="failed", error=entry.error)
    try:
        reasons, damaged = stale_for(entry)
        outcome = replace(outcome, reasons=tuple(reasons), state="stale" if reasons else "fresh")
        if not reasons or publisher is None:
            return outcome
        publication = publisher(entry, damaged)
        if damaged:
            _check_mended(entry)
        commit = publication.commit if publication else None
        return replace(outcome, state="republished", commit=commit, publication=publication)
    except jobs.NotFollowedError:
        raise
    except Exception as error:
        # Nothing that is wrong with one entry keeps the others from being done.
        if os.environ.get("MOPEQ_DEBUG") and not isinstance(error, MopeqError):
            raise
        return replace(outcome, state="failed", error=redact(described(error)))


def stale_for(entry: Entry) -> tuple[list[str], bool]:
    """Why an entry has to be published again, in words, nothing where it is as it should be; and whether its
    destination says that it holds this very publication, and does not.

    Raises MopeqError where it cannot be known, or publishing again would not help.
    """
    commit, recipe = open_source(entry.model).commit, with_given(entry.recipe, None)[0]
    if recipe.signal == BEST or recipe.allocator == MEASURED:
        asked = read_questions(entry.questions)
        recipe = settled_for(open_model(entry.model), recipe, asked, workplace.home(), to_hub=True, stream=None)
    destination, name = destination_for(entry.to, entry.model), publication_name(recipe, commit)
    published = destination.publication()
    if published == name:
        reasons = _failing(entry)
        return reasons, bool(reasons)
    manifest = _manifest(destination)
    if manifest is None:
        return ["nothing is published there"], False
    reasons = list(_changes(manifest, commit, recipe))
    if published is None:
        reasons.append("files of the publication are missing or damaged")
    return reasons or [f"it holds {published}, not {name}"], False


def _manifest(destination: Destination) -> dict[str, Any] | None:
    try:
        return read_object(destination.read_text(MANIFEST_NAME))
    except MopeqError:
        return None


def _failing(entry: Entry) -> list[str]:
    """What the check finds wrong with the publication. Raises MopeqError where publishing again would leave it so."""
    troubles = [finding for finding in check(entry.to, load=False) if finding.trouble]
    for finding in troubles:
        if finding.subject == FOREIGN:
            raise MopeqError(f"{entry.to} fails its check: {finding.trouble}", "take that file away")
    return [f"its check fails: {finding.trouble}" for finding in troubles]


def _check_mended(entry: Entry) -> None:
    """Raises MopeqError where the check fails still: it would be published again and again."""
    left = _failing(entry)
    if left:
        raise MopeqError(f"it was published again, and still {left[0]}", "see `mopeq-hub check`")


def _changes(manifest: dict[str, Any], commit: str, recipe: Recipe) -> Iterator[str]:
    """What is not as it was when this was published. The manifest is a stranger's: any part may be missing."""
    source, tool, before = (_part(manifest, name) for name in ("source", "tool", "recipe"))
    if source.get("commit") != commit:
        yield f"the source's commit moved from {_short(source.get('commit'))} to {_short(commit)}"
    now = recipe.to_dict()
    changed = [
        f"{name} from {_value(before.get(name))} to {_value(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        yield f"the recipe changed: {', '.join(changed)}"
    if tool.get("format_version") != FORMAT_VERSION:
        yield f"mopeq-hub's format went from version {_value(tool.get('format_version'))} to {FORMAT_VERSION}"


def _part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    part = manifest.get(name)
    return part if isinstance(part, dict) else {}


def _short(commit: object) -> str:
    return commit[:12] if isinstance(commit, str) else "an unknown one"


def _value(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "nothing" if value is None else str(value)[:100]
