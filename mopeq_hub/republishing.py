"""Publishing again what is stale of a catalog, and just that."""

import os
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from mopeq_hub import github, jobs
from mopeq_hub.catalog import BrokenEntry, Entry, chosen, name_of, read_catalog
from mopeq_hub.engines import Engine
from mopeq_hub.engines.choice import check_options, engine_named
from mopeq_hub.errors import MopeqError, UsageError, described
from mopeq_hub.hub import MAIN, destination_for
from mopeq_hub.pipeline import Publication, publish
from mopeq_hub.progress import Progress
from mopeq_hub.redact import redact
from mopeq_hub.staleness import failing, stale_for
from mopeq_hub.variants import publish_variants

MATRIX_LIMIT = 256
"""How many jobs GitHub takes in one matrix; what is left is found by the next run."""

State = Literal["fresh", "stale", "republished", "failed"]
Publisher = Callable[[Entry, Set[str]], Publication | None]
"""Publishes an entry; given the branches that seem to hold already what they should, and do not. Gives what is in main,
or None where that is not known here."""


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

        def as_job(entry: Entry, again: Set[str]) -> None:
            jobs.republish([entry], progress.say, flavor=flavor, timeout=timeout)

        yield as_job
        return
    with engine_named(engine, ray_address) as chosen:
        yield _publisher(chosen, sign, progress)


def _publisher(engine: Engine, sign: str | None, progress: Progress) -> Publisher:
    def here(entry: Entry, again: Set[str]) -> Publication:
        options: dict[str, Any] = {
            "questions": entry.questions, "space": entry.space, "private": entry.private,
            "sign": sign, "engine": engine, "progress": progress, "trust_remote_code": entry.trust_remote_code,
        }  # fmt: skip
        if entry.budgets:
            return publish_variants(entry.model, entry.to, entry.recipe, entry.budgets, again=again, **options).main
        return publish(entry.model, entry.to, entry.recipe, again=bool(again), **options)

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
            _check_mended(entry, damaged)
        commit = publication.commit if publication else None
        return replace(outcome, state="republished", commit=commit, publication=publication)
    except jobs.NotFollowedError:
        raise
    except Exception as error:
        # Nothing that is wrong with one entry keeps the others from being done.
        if os.environ.get("MOPEQ_DEBUG") and not isinstance(error, MopeqError):
            raise
        return replace(outcome, state="failed", error=redact(described(error)))


def _check_mended(entry: Entry, damaged: Set[str]) -> None:
    """Raises MopeqError where the check fails still: it would be published again and again."""
    destination = destination_for(entry.to, entry.model)
    for name in damaged:
        left = failing(destination if name == MAIN else destination.variant(name))
        if left:
            raise MopeqError(f"it was published again, and still {left[0]}", "see `mopeq-hub check`")
