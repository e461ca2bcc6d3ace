"""Jobs: submitted, looked at, and their logs as a stream of events; scheduled ones are kept.  Nothing is run.

What a job will say and how it will end is planned by the test.  Its log comes in parts, one more with each request, as
a client sees it that is cut off and asks again; with the last part the job has ended.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from .errors import HubError, bad_request, login_required
from .state import Hub, require_writer
from .wire import Request, Response, json_response, router

_FLAVORS = ("cpu-basic", "cpu-upgrade", "cpu-xl", "t4-small", "a10g-small", "h200")
_STARTED = "2026-01-01T00:00:00.000Z"


@dataclass
class _Asked:
    """What was asked for; of its secrets only digests are kept."""

    id: str
    namespace: str
    spec: dict[str, Any]
    secret_digests: dict[str, str]

    def secret_is(self, key: str, value: str) -> bool:
        """Whether a secret has this value."""
        return self.secret_digests.get(key) == _digest(value)

    def _common(self) -> dict[str, Any]:
        owner = {"id": self.namespace, "name": self.namespace, "type": "user"}
        return {"id": self.id, "createdAt": _STARTED, "owner": owner}


@dataclass
class Job(_Asked):
    """A submitted job."""

    parts: list[list[str]]
    outcome: str
    message: str | None
    shown: list[str] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """Where it is now."""
        return "RUNNING" if self.parts else self.outcome

    def info(self) -> dict[str, Any]:
        """The answer of the Hub: everything but the secrets."""
        return {
            **self._common(),
            "status": {"stage": self.stage, "message": None if self.parts else self.message},
            **self.spec,
        }


@dataclass
class ScheduledJob(_Asked):
    """A job that the Hub would begin time and again."""

    schedule: str
    concurrency: bool

    def info(self) -> dict[str, Any]:
        """The answer of the Hub: everything but the secrets."""
        return {
            **self._common(),
            "schedule": self.schedule,
            "suspend": False,
            "concurrency": self.concurrency,
            "status": {"lastJob": None, "nextJobRunAt": _STARTED},
            "jobSpec": self.spec,
        }


@router.add("POST", "/api/scheduled-jobs/{namespace}")
def schedule(hub: Hub, request: Request) -> Response:
    """A new schedule."""
    namespace = request.params["namespace"]
    require_writer(request.account, namespace)
    asked = request.json()
    spec = asked["jobSpec"]
    if spec.get("flavor") not in _FLAVORS:
        raise bad_request(f"Invalid flavor: {spec.get('flavor')}")
    digests = {key: _digest(str(value)) for key, value in spec.pop("secrets", {}).items()}
    hub.schedules_made += 1
    number = f"{hub.schedules_made:024x}"
    job = ScheduledJob(number, namespace, spec, digests, asked["schedule"], asked.get("concurrency", False))
    hub.schedules[job.id] = job
    return json_response(job.info())


@router.add("GET", "/api/scheduled-jobs/{namespace}")
def list_schedules(hub: Hub, request: Request) -> Response:
    """The schedules of an account, all or those with one label."""
    namespace = request.params["namespace"]
    require_writer(request.account, namespace)
    wanted = [tuple(label.split("=", 1)) for label in request.query.get("label", [])]
    found = [job for job in hub.schedules.values() if job.namespace == namespace]
    found = [job for job in found if all(job.spec.get("labels", {}).get(key) == value for key, value in wanted)]
    return json_response([job.info() for job in found])


@router.add("DELETE", "/api/scheduled-jobs/{namespace}/{job}")
def unschedule(hub: Hub, request: Request) -> Response:
    """A schedule that is no more."""
    namespace, job = request.params["namespace"], hub.schedules.get(request.params["job"])
    require_writer(request.account, namespace)
    if job is None or job.namespace != namespace:
        raise HubError(404, "Scheduled job not found")
    del hub.schedules[job.id]
    return json_response({})


@router.add("POST", "/api/jobs/{namespace}")
def submit(hub: Hub, request: Request) -> Response:
    """A new job, which begins to run at once."""
    namespace = request.params["namespace"]
    require_writer(request.account, namespace)
    spec = request.json()
    if spec.get("flavor") not in _FLAVORS:
        raise bad_request(f"Invalid flavor: {spec.get('flavor')}")
    secrets = spec.pop("secrets", {})
    plan = hub.job_plans.pop(0) if hub.job_plans else {"parts": [[]], "outcome": "COMPLETED", "message": None}
    digests = {key: _digest(str(value)) for key, value in secrets.items()}
    job = Job(f"{len(hub.jobs) + 1:024x}", namespace, spec, digests, **plan)
    hub.jobs[job.id] = job
    return json_response(job.info())


@router.add("GET", "/api/jobs/{namespace}/{job}")
def inspect(hub: Hub, request: Request) -> Response:
    """The job as it is now."""
    return json_response(_own(hub, request).info())


@router.add("GET", "/api/jobs/{namespace}/{job}/logs")
def logs(hub: Hub, request: Request) -> Response:
    """The log from its beginning, with one part more than before."""
    job = _own(hub, request)
    if job.parts:
        job.shown += job.parts.pop(0)
    events = [{"data": line, "timestamp": _STARTED} for line in ["===== Job started at 2026-01-01 =====", *job.shown]]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Response(200, {"Content-Type": "text/event-stream"}, body.encode())


def _own(hub: Hub, request: Request) -> Job:
    if request.account is None:
        raise login_required()
    job = hub.jobs.get(request.params["job"])
    if job is None or not request.account.owns(job.namespace):
        raise HubError(404, "Job not found")
    return job


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
