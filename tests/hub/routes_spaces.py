"""Routes of a space beyond its files: runtime, hardware, variables and secrets."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

from .errors import HubError, bad_request
from .repositories import Repository, SpaceState
from .state import Hub
from .wire import Request, Response, json_response, router

_HARDWARE = re.compile(
    r"cpu-(basic|upgrade)|zero-a10g|t4-(small|medium)|l4x[14]|l40sx[148]|a10g-(small|large(x[24])?)"
    r"|a100-large|a100x[48]|rtx-pro-6000(x[248])?"
)
_APP_FILES = {"gradio": "app.py", "streamlit": "app.py", "docker": "Dockerfile", "static": "index.html"}
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@router.add("GET", "/api/{kinds}/{repo}/runtime")
def get_runtime(hub: Hub, request: Request) -> Response:
    """The state of the space's machine."""
    return json_response(runtime(hub.repo_for_reading(request)))


@router.add("POST", "/api/{kinds}/{repo}/hardware")
def request_hardware(hub: Hub, request: Request) -> Response:
    """Ask for other hardware."""
    repo, space = _own_space(hub, request)
    payload = request.json()
    _set_hardware(space, payload.get("flavor"))
    space.sleep_time = payload.get("sleepTimeSeconds", space.sleep_time)
    return json_response(runtime(repo))


@router.add("POST", "/api/{kinds}/{repo}/sleeptime")
def set_sleep_time(hub: Hub, request: Request) -> Response:
    """Set after how long an unused space sleeps."""
    repo, space = _own_space(hub, request)
    space.sleep_time = request.json().get("seconds")
    return json_response(runtime(repo))


@router.add("POST", "/api/{kinds}/{repo}/pause")
def pause(hub: Hub, request: Request) -> Response:
    """Stop the space."""
    repo, space = _own_space(hub, request)
    space.paused = True
    return json_response(runtime(repo))


@router.add("POST", "/api/{kinds}/{repo}/restart")
def restart(hub: Hub, request: Request) -> Response:
    """Start the space again."""
    repo, space = _own_space(hub, request)
    space.paused = False
    return json_response(runtime(repo))


@router.add("GET", "/api/{kinds}/{repo}/variables")
def get_variables(hub: Hub, request: Request) -> Response:
    """The variables with their values."""
    return json_response(_own_space(hub, request)[1].variables)


@router.add("POST", "/api/{kinds}/{repo}/variables")
def add_variable(hub: Hub, request: Request) -> Response:
    """Add or change a variable."""
    space = _own_space(hub, request)[1]
    _add_variable(space, request.json())
    return json_response(space.variables)


@router.add("DELETE", "/api/{kinds}/{repo}/variables")
def delete_variable(hub: Hub, request: Request) -> Response:
    """Remove a variable."""
    space = _own_space(hub, request)[1]
    space.variables.pop(str(request.json().get("key")), None)
    return json_response(space.variables)


@router.add("GET", "/api/{kinds}/{repo}/secrets")
def get_secrets(hub: Hub, request: Request) -> Response:
    """The names of the secrets, never their values."""
    return json_response(_own_space(hub, request)[1].secrets)


@router.add("POST", "/api/{kinds}/{repo}/secrets")
def add_secret(hub: Hub, request: Request) -> Response:
    """Add or change a secret."""
    _add_secret(_own_space(hub, request)[1], request.json())
    return json_response({"success": True})


@router.add("DELETE", "/api/{kinds}/{repo}/secrets")
def delete_secret(hub: Hub, request: Request) -> Response:
    """Remove a secret."""
    space = _own_space(hub, request)[1]
    key = str(request.json().get("key"))
    space.secrets.pop(key, None)
    space.secret_digests.pop(key, None)
    return json_response({"success": True})


def configure_space(space: SpaceState, payload: dict[str, Any]) -> None:
    """Apply what a creation request says about the machine, the variables and the secrets."""
    if payload.get("hardware") is not None:
        _set_hardware(space, payload["hardware"])
    space.sleep_time = payload.get("sleepTimeSeconds")
    for variable in payload.get("variables") or []:
        _add_variable(space, variable)
    for secret in payload.get("secrets") or []:
        _add_secret(space, secret)


def runtime(repo: Repository) -> dict[str, Any]:
    """The runtime as the client reads it; a space runs as soon as the file that its SDK starts is there."""
    space = _space_of(repo)
    stage = "RUNNING" if _APP_FILES[space.sdk] in repo.head().tree else "NO_APP_FILE"
    return {
        "stage": "PAUSED" if space.paused else stage,
        "hardware": {"current": space.hardware, "requested": space.hardware},
        "gcTimeout": space.sleep_time,
        "storage": None,
        "replicas": {"requested": 1, "current": 1},
    }


def secret_digest(value: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(value.encode()).hexdigest()


def _own_space(hub: Hub, request: Request) -> tuple[Repository, SpaceState]:
    repo = hub.repo_for_writing(request)
    return repo, _space_of(repo)


def _space_of(repo: Repository) -> SpaceState:
    if repo.space is None:
        raise HubError(404, "Only spaces have a runtime, variables and secrets")
    return repo.space


def _set_hardware(space: SpaceState, flavor: object) -> None:
    if not isinstance(flavor, str) or not _HARDWARE.fullmatch(flavor):
        raise bad_request(f"Unknown hardware: {flavor!r}")
    space.hardware = flavor


def _add_variable(space: SpaceState, payload: dict[str, Any]) -> None:
    key, value = _key_and_value(payload)
    space.variables[key] = {"value": value, **_note(payload)}


def _add_secret(space: SpaceState, payload: dict[str, Any]) -> None:
    key, value = _key_and_value(payload)
    space.secrets[key] = {"key": key, **_note(payload)}
    space.secret_digests[key] = secret_digest(value)


def _key_and_value(payload: dict[str, Any]) -> tuple[str, str]:
    key, value = payload.get("key"), payload.get("value")
    if not isinstance(key, str) or not _KEY.fullmatch(key) or not isinstance(value, str):
        raise bad_request('"key" must be a name and "value" a string')
    return key, value


def _note(payload: dict[str, Any]) -> dict[str, str]:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    description = payload.get("description")
    return {"updatedAt": moment, **({"description": description} if isinstance(description, str) else {})}
