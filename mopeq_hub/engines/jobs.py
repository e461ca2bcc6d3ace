"""The same command as a job on the Hub's machines: submitted, and followed to its end."""

import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub import hub_client
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


@dataclass(frozen=True)
class Job:
    """A job that has come to its end. stage: the Hub's word for how."""

    id: str
    url: str
    stage: str


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
    timeout = timeout or TIMEOUT
    if not re.fullmatch(r"\d+(\.\d+)?[smhd]?", timeout):
        raise UsageError(f"--timeout {timeout!r} is not a time", "write it as 90m, 6h or 2d")
    token = _token()
    target = _there(model, to, files)
    api = hub_client.api()
    with hub_client.hub_errors("the job"), warnings.catch_warnings():
        # The client warns that it may change this call; its version is bounded.
        warnings.simplefilter("ignore", UserWarning)
        job = api.run_uv_job(
            "mopeq-hub",
            script_args=["publish", model, "--to", target, *options],
            dependencies=[f"mopeq-hub=={__version__}"],
            flavor=flavor or FLAVOR,
            timeout=timeout,
            secrets={"HF_TOKEN": token},
        )
    say(f"job {job.id}: {job.url}")
    try:
        ended = _followed(api, job, say)
    except Exception:
        raise
    except BaseException:
        raise MopeqError(
            f"job {job.id} is not followed any longer, but goes on: {job.url}", f"`hf jobs cancel {job.id}` ends it"
        ) from None
    if ended.status.stage != "COMPLETED":
        why = f": {ended.status.message}" if ended.status.message else ""
        raise MopeqError(f"job {job.id} ended as {_word(ended.status.stage)}{why}", f"its log is at {job.url}")
    return Job(job.id, job.url, _word(ended.status.stage))


def _there(model: str, to: str | None, files: Sequence[Path | None]) -> str:
    """The repo that is published to. Raises UsageError on what a machine of the Hub's could not see."""
    for file in files:
        if file is not None:
            raise UsageError(f"a job cannot read {file}, which is on this machine", "leave it out with --engine jobs")
    if model.startswith(_LOCAL) or Path(model).exists():
        raise UsageError(f"a job cannot read {model}, which is on this machine", "name a model on the Hub")
    destination = destination_for(to, model)
    if destination.repo_id is None:
        raise UsageError(f"a job cannot write to {destination.describe()}", "name a Hub repo with --to owner/name")
    return destination.repo_id


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise MopeqError("--engine jobs needs a token and none is set", hub_client.TOKEN_ADVICE)
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
