"""Routes that make, move, describe and delete repositories."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .cards import metadata
from .errors import bad_request, conflict
from .objects import Commit
from .repositories import SPACE_SDKS, RepoKind, Repository, SpaceState
from .routes_spaces import configure_space, runtime
from .state import Hub, require_writer
from .upload_rules import DEFAULT_GITATTRIBUTES
from .wire import Request, Response, json_response, router

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?(?<!\.git)(?<!\.ipynb)")
_KINDS: tuple[RepoKind, ...] = ("model", "dataset", "space")
_VISIBILITIES = ("public", "private")


@router.add("POST", "/api/repos/create")
def create_repo(hub: Hub, request: Request) -> Response:
    """Make a repository with the initial commit that the Hub makes."""
    payload = request.json()
    kind = _kind(payload)
    account = require_writer(request.account, payload.get("organization") or _own_name(request))
    repo_id = f"{payload.get('organization') or account.name}/{_valid_name(payload.get('name'))}"
    with hub.lock:
        if (kind, repo_id) in hub.repos:
            url = f"{hub.endpoint}/{hub.repos[kind, repo_id].web_path}"
            raise conflict(f"You already created this {kind} repo", url=url)
        repo = Repository(kind, repo_id, private=_wants_private(payload), space=_space(kind, payload))
        hub.repos[kind, repo_id] = repo
        hub.moved.pop((kind, repo_id), None)
        hub.commit_files(repo, _initial_files(repo), "main", "initial commit", account.name)
    return json_response({"url": f"{hub.endpoint}/{repo.web_path}", "name": repo.id, "id": repo.id})


@router.add("DELETE", "/api/repos/delete")
def delete_repo(hub: Hub, request: Request) -> Response:
    """Remove a repository and all its history."""
    payload = request.json()
    kind = _kind(payload)
    repo_id = f"{payload.get('organization') or _own_name(request)}/{payload.get('name')}"
    with hub.lock:
        repo = hub.visible_repo(request, kind, repo_id)
        require_writer(request.account, repo.namespace)
        del hub.repos[kind, repo_id]
    return json_response({"success": True})


@router.add("POST", "/api/repos/move")
def move_repo(hub: Hub, request: Request) -> Response:
    """Rename a repository; its old address leads to the new one."""
    payload = request.json()
    kind, target = _kind(payload), str(payload.get("toRepo"))
    namespace, _, name = target.partition("/")
    with hub.lock:
        repo = hub.visible_repo(request, kind, str(payload.get("fromRepo")))
        require_writer(request.account, repo.namespace)
        require_writer(request.account, namespace)
        _valid_name(name)
        if (kind, target) in hub.repos:
            raise conflict(f"A {kind} named {target} exists already")
        del hub.repos[kind, repo.id]
        hub.moved[kind, repo.id] = target
        hub.moved.pop((kind, target), None)
        repo.id = target
        hub.repos[kind, target] = repo
    return json_response({"success": True, "url": f"{hub.endpoint}/{repo.web_path}"})


@router.add("PUT", "/api/{kinds}/{repo}/settings")
def update_settings(hub: Hub, request: Request) -> Response:
    """Change who may see or read a repository."""
    repo, payload = hub.repo_for_writing(request), request.json()
    if "gated" in payload:
        if payload["gated"] not in ("auto", "manual", False):
            raise bad_request('"gated" must be one of [auto, manual, false]')
        repo.gated = payload["gated"]
    if "private" in payload or "visibility" in payload:
        repo.private = _wants_private(payload)
    return json_response({"private": repo.private, "gated": repo.gated})


@router.add("POST", "/api/{kinds}/{repo}/user-access-request/grant")
def grant_access(hub: Hub, request: Request) -> Response:
    """Admit an account to a gated repository."""
    repo = hub.repo_for_writing(request)
    repo.readers.add(str(request.json().get("user")))
    return json_response({"success": True})


@router.add("GET", "/api/{kinds}/{repo}/auth-check")
def auth_check(hub: Hub, request: Request) -> Response:
    """Whether the bearer may read the files."""
    hub.repo_for_content(request)
    return json_response({"success": True})


@router.add("GET", "/api/{kinds}/{repo}/auth-check/write")
def auth_check_write(hub: Hub, request: Request) -> Response:
    """Whether the bearer may write."""
    hub.repo_for_writing(request)
    return json_response({"success": True})


@router.add("GET", "/api/{kinds}")
def list_repos(hub: Hub, request: Request) -> Response:
    """The repositories that the bearer may see, by author and by a part of their name."""
    author, search = request.query.get("author", [""])[0], request.query.get("search", [""])[0].lower()
    visible = [
        repo
        for (kind, _), repo in sorted(hub.repos.items())
        if kind == request.kind and (not repo.private or (request.account and request.account.owns(repo.namespace)))
    ]
    found = [repo for repo in visible if author in ("", repo.namespace) and search in repo.id.lower()]
    return json_response([_description(hub, repo, repo.head(), blobs=False) for repo in found])


@router.add("GET", "/api/{kinds}/{repo}")
def repo_info(hub: Hub, request: Request) -> Response:
    """A repository at the head of main."""
    return _info(hub, request, "main")


@router.add("GET", "/api/{kinds}/{repo}/revision/{revision}")
def repo_info_at(hub: Hub, request: Request) -> Response:
    """A repository at a revision."""
    return _info(hub, request, request.params["revision"])


def _info(hub: Hub, request: Request, revision: str) -> Response:
    repo = hub.repo_for_reading(request)
    description = _description(hub, repo, repo.resolve(revision), blobs=request.flag("blobs"))
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    if wanted:
        description = {key: value for key, value in description.items() if key in ("_id", "id", *wanted)}
    return json_response(description, headers={"X-Repo-Commit": repo.resolve(revision).oid})


def _description(hub: Hub, repo: Repository, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    card = metadata(hub.text_file(commit.tree, "README.md") or "")
    described: dict[str, Any] = {
        "_id": repo.head().oid[:24],
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": _date(repo.created),
        "lastModified": _date(commit.date),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card),
        "cardData": card or None,
        "siblings": _siblings(commit, blobs=blobs),
        "usedStorage": sum(entry.size for entry in commit.tree.values()),
    }
    if repo.kind == "model":
        described["modelId"] = repo.id
        described |= {key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card}
    if repo.space is not None:
        described |= {"sdk": repo.space.sdk, "runtime": runtime(repo)}
    return described


def _siblings(commit: Commit, *, blobs: bool) -> list[dict[str, Any]]:
    siblings = []
    for path, entry in commit.tree.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": entry.size, "blobId": entry.git_oid}
            sibling |= {"lfs": entry.lfs_info()} if entry.is_lfs else {}
        siblings.append(sibling)
    return siblings


def _tags(card: Mapping[str, Any]) -> list[str]:
    tags = [tag for tag in card.get("tags") or [] if isinstance(tag, str)]
    for key in ("library_name", "pipeline_tag"):
        tags += [card[key]] if isinstance(card.get(key), str) else []
    for key, prefix in (("license", "license"), ("base_model", "base_model"), ("datasets", "dataset")):
        values = card.get(key) or []
        tags += [f"{prefix}:{value}" for value in (values if isinstance(values, list) else [values])]
    relation, bases = card.get("base_model_relation"), card.get("base_model") or []
    if isinstance(relation, str):
        tags += [f"base_model:{relation}:{base}" for base in (bases if isinstance(bases, list) else [bases])]
    return list(dict.fromkeys(tags))


def _initial_files(repo: Repository) -> dict[str, bytes]:
    files = {".gitattributes": DEFAULT_GITATTRIBUTES.encode()}
    if repo.space is not None:
        name = repo.id.split("/")[1]
        files["README.md"] = f"---\ntitle: {name}\nsdk: {repo.space.sdk}\npinned: false\n---\n".encode()
    return files


def _space(kind: RepoKind, payload: dict[str, Any]) -> SpaceState | None:
    if kind != "space":
        return None
    if payload.get("sdk") not in SPACE_SDKS:
        raise bad_request(f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    space = SpaceState(payload["sdk"])
    configure_space(space, payload)
    return space


def _kind(payload: dict[str, Any]) -> RepoKind:
    for kind in _KINDS:
        if payload.get("type", "model") == kind:
            return kind
    raise bad_request(f'"type" must be one of [{", ".join(_KINDS)}]')


def _own_name(request: Request) -> str:
    # An anonymous request has no namespace; the write check refuses it whatever is named here.
    return request.account.name if request.account else ""


def _valid_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"Invalid repository name: {name!r}")
    return name


def _wants_private(payload: dict[str, Any]) -> bool:
    visibility = payload.get("visibility", "private" if payload.get("private") else "public")
    if visibility not in _VISIBILITIES:
        raise bad_request(f'"visibility" must be one of [{", ".join(_VISIBILITIES)}]')
    return bool(visibility == "private")


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
