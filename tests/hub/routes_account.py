"""Routes that concern no repository: who am I, is this card valid."""

from __future__ import annotations

from .cards import validate
from .errors import invalid_token
from .state import Hub
from .wire import Request, Response, json_response, router


@router.add("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Response:
    """The account of the token."""
    if request.account is None:
        raise invalid_token()
    return json_response(request.account.identity())


@router.add("POST", "/api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Response:
    """Judge a README before it is uploaded."""
    payload = request.json()
    findings = validate(str(payload.get("content", "")), str(payload.get("repoType", "model")))
    return json_response(findings.answer(), 400 if findings.errors else 200)
