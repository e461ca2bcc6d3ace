"""Routes that list and change what is in a repository's history: branches, tags, commits, folders."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode, urlsplit

from .errors import bad_request, entry_not_found
from .objects import Commit, folder_oids
from .repositories import Repository
from .state import Hub
from .wire import Request, Response, json_response, router

_COMMITS_PER_PAGE = 50
_MOST_PATHS = 1000


@router.add("GET", "/api/{kinds}/{repo}/refs")
def list_refs(hub: Hub, request: Request) -> Response:
    """All branches and tags."""
    repo = hub.repo_for_reading(request)
    refs: dict[str, Any] = {
        "branches": [_ref(name, f"refs/heads/{name}", oid) for name, oid in repo.branches.items()],
        "tags": [_ref(name, f"refs/tags/{name}", oid) for name, oid in repo.tags.items()],
        "converts": [],
    }
    if request.flag("include_prs"):
        refs["pullRequests"] = []
    return json_response(refs)


@router.add("POST", "/api/{kinds}/{repo}/branch/{name}")
def create_branch(hub: Hub, request: Request) -> Response:
    """Make a branch."""
    repo, payload = hub.repo_for_writing(request), request.json()
    with hub.lock:
        repo.create_branch(request.params["name"], payload.get("startingPoint"))
    return json_response({"success": True}, 201)


@router.add("DELETE", "/api/{kinds}/{repo}/branch/{name}")
def delete_branch(hub: Hub, request: Request) -> Response:
    """Remove a branch."""
    repo = hub.repo_for_writing(request)
    with hub.lock:
        repo.delete_branch(request.params["name"])
    return json_response({"success": True})


@router.add("POST", "/api/{kinds}/{repo}/tag/{revision}")
def create_tag(hub: Hub, request: Request) -> Response:
    """Tag a revision."""
    repo, payload = hub.repo_for_writing(request), request.json()
    with hub.lock:
        repo.create_tag(payload.get("tag", ""), request.params["revision"])
    return json_response({"success": True}, 201)


@router.add("DELETE", "/api/{kinds}/{repo}/tag/{name}")
def delete_tag(hub: Hub, request: Request) -> Response:
    """Remove a tag."""
    repo = hub.repo_for_writing(request)
    with hub.lock:
        repo.delete_tag(request.params["name"])
    return json_response({"success": True})


@router.add("GET", "/api/{kinds}/{repo}/commits/{revision}")
def list_commits(hub: Hub, request: Request) -> Response:
    """The history of a revision, newest first."""
    repo = hub.repo_for_reading(request)
    history = [_commit_line(commit) for commit in repo.history(repo.resolve(request.params["revision"]))]
    return _page(hub, request, history, _COMMITS_PER_PAGE)


@router.add("GET", "/api/{kinds}/{repo}/tree/{revision}")
def list_root(hub: Hub, request: Request) -> Response:
    """The files of a revision."""
    return _list_folder(hub, request, "")


@router.add("GET", "/api/{kinds}/{repo}/tree/{revision}/{path}")
def list_folder(hub: Hub, request: Request) -> Response:
    """The files of a folder."""
    return _list_folder(hub, request, request.params["path"].strip("/"))


@router.add("POST", "/api/{kinds}/{repo}/paths-info/{revision}")
def paths_info(hub: Hub, request: Request) -> Response:
    """What is at the given paths; absent paths are left out."""
    repo = hub.repo_for_reading(request)
    commit, form = repo.resolve(request.params["revision"]), request.form()
    paths = form.get("paths", [])
    if len(paths) > _MOST_PATHS:
        raise bad_request(f"too many paths: at most {_MOST_PATHS}")
    expand = str(_first(form.get("expand"))).lower() == "true"
    known = _lines(repo, commit, expand=expand)
    return json_response([known[path] for path in paths if path in known])


def _list_folder(hub: Hub, request: Request, folder: str) -> Response:
    repo = hub.repo_for_reading(request)
    commit = repo.resolve(request.params["revision"])
    recursive, expand = request.flag("recursive"), request.flag("expand")
    lines = _lines(repo, commit, expand=expand)
    if folder and lines.get(folder, {}).get("type") != "directory":
        raise entry_not_found(f"{folder} does not exist on {request.params['revision']}", commit.oid)
    prefix = f"{folder}/" if folder else ""
    inside = [line for path, line in sorted(lines.items()) if path.startswith(prefix) and path != folder]
    chosen = [line for line in inside if recursive or "/" not in line["path"].removeprefix(prefix)]
    return _page(hub, request, chosen, hub.settings.tree_page_size)


def _lines(repo: Repository, commit: Commit, *, expand: bool) -> dict[str, dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = {}
    for path, oid in folder_oids(commit.tree).items():
        if path:
            lines[path] = {"type": "directory", "oid": oid, "size": 0, "path": path}
    for path, entry in commit.tree.items():
        lines[path] = {"type": "file", "oid": entry.git_oid, "size": entry.size, "path": path}
        lines[path] |= {"lfs": entry.lfs_info()} if entry.is_lfs else {}
    if expand:
        for path, line in lines.items():
            last = repo.last_change(commit, path)
            line["lastCommit"] = {"id": last.oid, "title": last.title, "date": _date(last)}
    return lines


def _page(hub: Hub, request: Request, items: list[dict[str, Any]], size: int) -> Response:
    start = int(request.query.get("cursor", ["0"])[0])
    following, headers = start + size, {}
    if following < len(items):
        query = {**request.query, "cursor": [str(following)]}
        address = f"{hub.endpoint}{urlsplit(request.target).path}?{urlencode(query, doseq=True)}"
        headers["Link"] = f'<{address}>; rel="next"'
    return json_response(items[start:following], headers=headers)


def _commit_line(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": _date(commit),
    }


def _ref(name: str, ref: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _date(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
