"""The same command as a job on the Hub's machines: submitted and followed to its end, or left there with a schedule."""

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub import hub_client
from mopeq_hub.catalog import VARIABLE, Entry
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.hub import destination_for
from mopeq_hub.redact import redact
from mopeq_hub.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

FLAVOR, TIMEOUT = "cpu-upgrade", "6h"
_RETRIES = 5
"""How often in a row the Hub may fail to answer while a job is followed."""
_PAUSE_SECONDS = 1.0
_TROUBLE = 500
"""From this status on the Hub is at fault, and may not be a moment later."""
_LOCAL = (".", "/", "~")
"""How names begin that can only be places on this machine."""
_SCHEDULE = r"@(annually|yearly|monthly|weekly|daily|hourly)|[\w*/,-]+( [\w*/,-]+){4}"
_LABEL = "mopeq-catalog"
"""Of a schedule: which catalog it keeps."""


class NotFollowedError(MopeqError):
    """Whoever followed a job was stopped; the job goes on."""


@dataclass(frozen=True)
class Job:
    """A job that has come to its end. stage: the Hub's word for how."""

    id: str
    url: str
    stage: str


@dataclass(frozen=True)
class Schedule:
    """A job that the Hub begins time and again. replaced: the ids of those it took the place of."""

    id: str
    name: str
    when: str
    account: str
    replaced: tuple[str, ...]


def publish(
    model: str,
    to: str | None,
    options: Sequence[str],
    say: Callable[[str], None],
    *,
    files: Sequence[Path | None] = (),
    flavor: str | None = None,
    timeout: str | None = None,
) -> Job:
    """Let `mopeq-hub publish` run as a job, and follow it to its end; every line of its log is told to `say`.

    options: of that command, but for where to and the engine. files: those that the options name, which would have to
    be there. flavor: the Hub's name of a machine. timeout: as `6h`, `30m`, `2d`, or in seconds.
    The token goes as a secret. Raises UsageError on what is on this machine alone, MopeqError where the job cannot be
    submitted or does not end well, or where it is not followed any longer.
    """
    asked, token = _machine(flavor, timeout), _token()
    target = _there(model, to, files)
    return _run(["publish", model, "--to", target, *options], {}, asked, token, say)


def republish(
    entries: Sequence[Entry], say: Callable[[str], None], *, flavor: str | None = None, timeout: str | None = None
) -> Job:
    """Let `mopeq-hub republish` run as a job with these entries for its catalog, and follow it; the rest as
    `publish`."""
    asked, token = _machine(flavor, timeout), _token()
    return _run(["republish"], _catalog(entries), asked, token, say)


def schedule(
    entries: Sequence[Entry],
    name: str,
    when: str,
    *,
    flavor: str | None = None,
    timeout: str | None = None,
) -> Schedule:
    """Have the Hub run `mopeq-hub republish` with these entries time and again, in place of what it ran for a catalog
    of this name before.

    when: @hourly, @daily, @weekly, @monthly, @yearly, or the five fields of cron.
    Raises UsageError on what is on this machine alone, MopeqError where the Hub does not take it.
    """
    if not re.fullmatch(_SCHEDULE, when):
        raise UsageError(f"--schedule {when!r} is not a schedule", "write it as @daily, @weekly or '0 9 * * 1'")
    asked, token, environment = _machine(flavor, timeout), _token("--on-hub"), _catalog(entries)
    api, account = hub_client.api(), hub_client.account()
    label = {_LABEL: re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "catalog"}
    with _asking("the schedule"):
        older = [job.id for job in api.list_scheduled_jobs(labels=label, namespace=account)]
        made = api.create_scheduled_uv_job(
            "mopeq-hub",
            script_args=["republish"],
            schedule=when,
            concurrency=False,
            dependencies=[f"mopeq-hub=={__version__}"],
            env=environment,
            secrets={"HF_TOKEN": token},
            name=f"mopeq-hub-republish-{label[_LABEL]}",
            labels=label,
            namespace=account,
            **asked,
        )
        # In this order, so that a Hub that fails in between leaves one too many, never none.
        for job_id in older:
            api.delete_scheduled_job(scheduled_job_id=job_id, namespace=account)
    return Schedule(made.id, label[_LABEL], made.schedule or when, account, tuple(older))


def _machine(flavor: str | None, timeout: str | None) -> dict[str, str]:
    """Where it runs and for how long, as the client calls it. Raises UsageError on a time that is none."""
    timeout = timeout or TIMEOUT
    if not re.fullmatch(r"\d+(\.\d+)?[smhd]?", timeout):
        raise UsageError(f"--timeout {timeout!r} is not a time", "write it as 90m, 6h or 2d")
    return {"flavor": flavor or FLAVOR, "timeout": timeout}


def _catalog(entries: Sequence[Entry]) -> dict[str, str]:
    """The environment in which a job finds these entries. Raises UsageError on what it could not see."""
    for entry in entries:
        _there(entry.model, entry.to, [Path(entry.questions)] if entry.questions else [])
    return {VARIABLE: json.dumps([entry.written() for entry in entries])}


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """The Hub's errors in words; the client warns that it may change these calls, and its version is bounded."""
    with hub_client.hub_errors(what), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _run(
    arguments: list[str], environment: dict[str, str], asked: dict[str, str], token: str, say: Callable[[str], None]
) -> Job:
    """Submit a command and follow it to its end."""
    api = hub_client.api()
    with _asking("the job"):
        job = api.run_uv_job(
            "mopeq-hub",
            script_args=arguments,
            dependencies=[f"mopeq-hub=={__version__}"],
            env=environment,
            secrets={"HF_TOKEN": token},
            **asked,
        )
    say(f"job {job.id}: {job.url}")
    try:
        ended = _followed(api, job, say)
    except Exception:
        raise
    except BaseException:
        raise NotFollowedError(
            f"job {job.id} is not followed any longer, but goes on: {job.url}", f"`hf jobs cancel {job.id}` ends it"
        ) from None
    if ended.status.stage != "COMPLETED":
        why = f": {ended.status.message}" if ended.status.message else ""
        raise MopeqError(f"job {job.id} ended as {_word(ended.status.stage)}{why}", f"its log is at {job.url}")
    return Job(job.id, job.url, _word(ended.status.stage))


def _there(model: str, to: str | None, files: Sequence[Path | None]) -> str:
    """The repo or branch that is published to. Raises UsageError on what a machine of the Hub's could not see."""
    for file in files:
        if file is not None:
            raise UsageError(f"a job cannot read {file}, which is on this machine", "leave it out with --engine jobs")
    if model.startswith(_LOCAL) or Path(model).exists():
        raise UsageError(f"a job cannot read {model}, which is on this machine", "name a model on the Hub")
    destination = destination_for(to, model)
    if destination.repo_id is None:
        raise UsageError(f"a job cannot write to {destination.describe()}", "name a Hub repo with --to owner/name")
    return destination.name


def _token(option: str = "--engine jobs") -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise MopeqError(f"{option} needs a token and none is set", hub_client.TOKEN_ADVICE)
    return token


def _followed(api: "HfApi", job: "JobInfo", say: Callable[[str], None]) -> "JobInfo":
    """Tell the job's log to its end, and give what became of it. A Hub that fails for a while is asked again."""
    from huggingface_hub.errors import HfHubHTTPError

    where: dict[str, Any] = {"job_id": job.id, "namespace": job.owner.name}
    told = failures = 0
    while True:
        try:
            for number, line in enumerate(api.fetch_job_logs(**where, follow=True)):
                # A log that is asked for again begins at its beginning.
                if number >= told:
                    say(redact(line))
                    told, failures = number + 1, 0
            return api.wait_for_job(**where)
        except HfHubHTTPError as error:
            if error.response.status_code < _TROUBLE or failures == _RETRIES:
                with hub_client.hub_errors(f"job {job.id}"):
                    raise
            failures += 1
            time.sleep(_PAUSE_SECONDS)


def _word(stage: Any) -> str:
    """A stage by the Hub's word, whether the client knows it or not."""
    return str(getattr(stage, "value", stage))
