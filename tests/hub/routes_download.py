"""Routes that give files out.

LFS content is answered as on the Hub: the file's address redirects to a signed address on another host (here: another
port), where no token may arrive.
"""

from __future__ import annotations

import hmac
import re
from urllib.parse import quote, urlsplit

from .errors import HubError, entry_not_found
from .objects import Commit, Entry, lfs_pointer
from .repositories import Repository
from .state import Hub
from .wire import FileSlice, Request, Response, router

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_HEX = re.compile(r"[0-9a-f]{64}")


@router.add("GET", "/{web}{repo}/resolve/{revision}/{path}")
def resolve(hub: Hub, request: Request) -> Response:
    """A file's content, or for LFS the way to it."""
    repo, commit, entry = _find(hub, request)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.etag}"', "Access-Control-Allow-Origin": "*"}
    if not entry.is_lfs:
        return _content(hub, request, repo.id, entry, headers)
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.etag}"'}
    if not hub.settings.lfs_redirect:
        return _content(hub, request, repo.id, entry, headers)
    return Response(302, headers | {"Location": _storage_address(hub, repo, entry, request.params["path"])})


@router.add("GET", "/{web}{repo}/raw/{revision}/{path}")
def raw(hub: Hub, request: Request) -> Response:
    """A file as git stores it: of an LFS file, the pointer."""
    repo, commit, entry = _find(hub, request)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.git_oid}"'}
    if entry.is_lfs:
        return Response(200, headers, lfs_pointer(entry.sha256, entry.size))
    return _content(hub, request, repo.id, entry, headers)


@router.add("GET", "/storage/{kinds}/{repo}/{oid}/{path}")
def storage(hub: Hub, request: Request) -> Response:
    """LFS content at an address that was signed by the Hub."""
    oid, path = request.params["oid"], urlsplit(request.target).path
    signature = request.query.get("signature", [""])[0]
    if not hmac.compare_digest(signature, hub.sign(path)) or not _HEX.fullmatch(oid):
        raise HubError(403, "SignatureDoesNotMatch")
    entry = Entry(oid, hub.blobs.path(oid).stat().st_size, oid, True)
    return _content(hub, request, request.params["repo"], entry, {"ETag": f'"{oid}"'})


def _find(hub: Hub, request: Request) -> tuple[Repository, Commit, Entry]:
    repo = hub.repo_for_content(request)
    commit = repo.resolve(request.params["revision"])
    entry = commit.tree.get(request.params["path"])
    if entry is None:
        raise entry_not_found(commit=commit.oid)
    return repo, commit, entry


def _content(hub: Hub, request: Request, repo_id: str, entry: Entry, headers: dict[str, str]) -> Response:
    start, stop = 0, entry.size
    wanted = _RANGE.fullmatch(request.headers.get("Range", ""))
    if wanted and wanted.group(0) != "bytes=-":
        start, stop = _bounds(wanted.group(1), wanted.group(2), entry.size)
        headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{entry.size}"}
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    body = FileSlice(hub.blobs.path(entry.sha256), start, stop - start, repo_id)
    return Response(206 if "Content-Range" in headers else 200, headers, body)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _storage_address(hub: Hub, repo: Repository, entry: Entry, path: str) -> str:
    address = f"/storage/{repo.kind}s/{repo.id}/{entry.sha256}/{quote(path)}"
    return f"{hub.storage_endpoint}{address}?signature={hub.sign(address)}"
