"""Routes that take files in: preupload, the LFS batch protocol and its storage, the commit."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from math import ceil
from typing import Any

from .blobs import Blob, DigestMismatch, read_chunks
from .cards import validate
from .errors import HubError, bad_request, entry_not_found
from .objects import Entry, lfs_entry, regular_entry
from .repositories import Repository, require_consistent, require_path
from .state import Hub, Upload, require_writer
from .upload_rules import belongs_in_lfs, is_ignored
from .wire import Request, Response, json_response, router

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_PREUPLOADS = 1000
_LFS_TYPE = {"Content-Type": "application/vnd.git-lfs+json"}


@router.add("POST", "/api/{kinds}/{repo}/preupload/{revision}")
def preupload(hub: Hub, request: Request) -> Response:
    """Say for each announced file how it is to be uploaded, and what is there already."""
    repo = hub.repo_for_writing(request)
    _refuse_pull_request(request)
    tree, payload = repo.head(request.params["revision"]).tree, request.json()
    files = payload.get("files", [])
    if len(files) > _MOST_PREUPLOADS:
        raise bad_request(f"too many files: at most {_MOST_PREUPLOADS}")
    hub.refuse_beyond_quota(repo.namespace, "preupload", sum(int(file["size"]) for file in files))
    rules, gitignore = hub.text_file(tree, ".gitattributes"), payload.get("gitIgnore")
    if gitignore is None:
        gitignore = hub.text_file(tree, ".gitignore")
    answers = []
    for file in files:
        path, sample = require_path(file.get("path")), base64.b64decode(file.get("sample", ""))
        in_lfs = belongs_in_lfs(path, int(file["size"]), sample, rules, hub.settings.regular_limit)
        answer = {
            "path": path,
            "uploadMode": "lfs" if in_lfs else "regular",
            "shouldIgnore": is_ignored(path, gitignore),
        }
        answers.append(answer | ({"oid": tree[path].etag} if path in tree else {}))
    return json_response({"files": answers})


@router.add("POST", "/{web}{repo}.git/info/lfs/objects/batch")
def lfs_batch(hub: Hub, request: Request) -> Response:
    """Tell where to bring the objects that this repository does not have yet."""
    repo, payload = hub.repo_for_writing(request), request.json()
    if payload.get("operation") != "upload" or payload.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "Only uploads of sha256 objects are served")
    announced = [_announced(item) for item in payload.get("objects", [])]
    missing = {blob for blob in announced if blob.sha256 not in repo.lfs_objects}
    hub.refuse_beyond_quota(repo.namespace, "preupload", sum(blob.size for blob in missing))
    multipart = "multipart" in payload.get("transfers", [])
    objects: list[dict[str, Any]] = []
    for blob in announced:
        item: dict[str, Any] = {"oid": blob.sha256, "size": blob.size}
        objects.append(item | ({"actions": _actions(hub, repo, blob, multipart)} if blob in missing else {}))
    return json_response({"transfer": "basic", "objects": objects}, headers=_LFS_TYPE)


@router.add("POST", "/{web}{repo}.git/info/lfs/objects/verify")
def lfs_verify(hub: Hub, request: Request) -> Response:
    """Confirm that an object arrived."""
    repo, blob = hub.repo_for_writing(request), _announced(request.json())
    if repo.lfs_objects.get(blob.sha256) != blob.size:
        raise HubError(404, f"Object {blob.sha256} of size {blob.size} was not uploaded")
    return json_response({"success": True})


@router.add("PUT", "/storage/uploads/{repo}/{ticket}")
def store_whole(hub: Hub, request: Request) -> Response:
    """Take an object in one piece; whatever is not what was announced is refused and forgotten."""
    upload = _upload(hub, request)
    _finish(hub, upload, _counted(hub, upload, request))
    return Response(200, {"ETag": f'"{upload.blob.sha256}"'})


@router.add("PUT", "/storage/uploads/{repo}/{ticket}/{part}")
def store_part(hub: Hub, request: Request) -> Response:
    """Take one part of an object; a part may be sent again."""
    upload, number, digest = _upload(hub, request), int(request.params["part"]), hashlib.sha256()
    if upload.part_size is None or not 1 <= number <= ceil(upload.blob.size / upload.part_size):
        raise bad_request(f"NoSuchPart: {number}")
    with hub.blobs.part_path(request.params["ticket"], number).open("wb") as stream:
        for chunk in _counted(hub, upload, request):
            digest.update(chunk)
            stream.write(chunk)
    upload.etags[number] = digest.hexdigest()
    return Response(200, {"ETag": f'"{digest.hexdigest()}"'})


@router.add("POST", "/storage/uploads/{repo}/{ticket}/complete")
def complete(hub: Hub, request: Request) -> Response:
    """Join the parts of an object and check the whole."""
    upload, ticket = _upload(hub, request), request.params["ticket"]
    listed = {int(part["partNumber"]): str(part["etag"]).strip('"') for part in request.json().get("parts", [])}
    if listed != upload.etags or len(listed) != ceil(upload.blob.size / (upload.part_size or upload.blob.size)):
        raise bad_request("InvalidPart: one or more of the parts could not be found")
    _finish(hub, upload, _joined(hub, ticket, sorted(listed)))
    for number in listed:
        hub.blobs.part_path(ticket, number).unlink()
    return json_response({"success": True}, headers=_LFS_TYPE)


@router.add("POST", "/api/{kinds}/{repo}/commit/{revision}")
def commit(hub: Hub, request: Request) -> Response:
    """Apply all operations or none."""
    repo, branch = hub.repo_for_writing(request), request.params["revision"]
    account = require_writer(request.account, repo.namespace)
    _refuse_pull_request(request)
    header, operations = _parse_commit(request)
    hub.refuse_beyond_quota(repo.namespace, "commit")
    with hub.lock:
        tree = dict(repo.head(branch).tree)
        if header.get("parentCommit"):
            repo.require_parent(branch, str(header["parentCommit"]))
        for key, value in operations:
            _apply(hub, repo, tree, key, value)
        require_consistent(tree)
        made = repo.append(branch, tree, header["summary"], header.get("description") or "", account.name)
    url = f"{hub.endpoint}/{repo.web_path}/commit/{made.oid}"
    return json_response({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _parse_commit(request: Request) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    try:
        lines = [json.loads(line) for line in request.body.read_all().splitlines() if line.strip()]
        items = [(str(line["key"]), dict(line["value"])) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise bad_request("The commit is not valid ndjson") from error
    if not items or items[0][0] != "header" or not items[0][1].get("summary"):
        raise bad_request('The commit must begin with a header that has a "summary"')
    return items[0][1], items[1:]


def _apply(hub: Hub, repo: Repository, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    path = require_path(str(value.get("path", "")).removesuffix("/") if key == "deletedFolder" else value.get("path"))
    if key == "file":
        tree[path] = _regular(hub, repo, path, value)
    elif key == "lfsFile":
        tree[path] = _uploaded(repo, path, value)
    elif key == "deletedFile":
        if tree.pop(path, None) is None:
            raise entry_not_found(f"A file with this name doesn't exist: {path}")
    elif key == "deletedFolder":
        inside = [name for name in tree if name.startswith(f"{path}/")]
        if not inside:
            raise entry_not_found(f"A folder with this name doesn't exist: {path}")
        for name in inside:
            del tree[name]
    else:
        raise bad_request(f"Unknown operation: {key!r}")


def _regular(hub: Hub, repo: Repository, path: str, value: dict[str, Any]) -> Entry:
    try:
        content = base64.b64decode(value.get("content", ""), validate=value.get("encoding") == "base64")
    except (binascii.Error, TypeError) as error:
        raise bad_request(f"The content of {path} is not valid base64") from error
    if len(content) > hub.settings.regular_limit:
        raise bad_request(f"The file {path} is too large to be committed without LFS")
    if path == "README.md":
        findings = validate(content.decode(errors="replace"), repo.kind)
        if findings.errors:
            raise bad_request("Invalid metadata in README.md: " + "; ".join(findings.errors), **findings.answer())
    hub.count(repo.id, uploaded=len(content))
    return regular_entry(content, hub.blobs.add(content).sha256)


def _uploaded(repo: Repository, path: str, value: dict[str, Any]) -> Entry:
    oid = str(value.get("oid"))
    size = repo.lfs_objects.get(oid)
    if size is None:
        raise bad_request(f"LFS pointer pointed to a file that does not exist. Offending file: {path}")
    # A copy inside the repository names the object without its size.
    if value.get("size", size) != size:
        raise bad_request(f"The size of {path} is not that of its LFS object")
    return lfs_entry(oid, size)


def _announced(item: dict[str, Any]) -> Blob:
    oid, size = item.get("oid"), item.get("size")
    if not isinstance(oid, str) or not _SHA256.fullmatch(oid) or not isinstance(size, int) or size < 0:
        raise HubError(422, "An object needs a sha256 oid and a size")
    return Blob(oid, size)


def _actions(hub: Hub, repo: Repository, blob: Blob, multipart: bool) -> dict[str, Any]:
    ticket, settings = secrets.token_urlsafe(24), hub.settings
    in_parts = multipart and blob.size > settings.multipart_threshold
    hub.uploads[ticket] = Upload(repo, blob, settings.part_size if in_parts else None)
    address = f"{hub.storage_endpoint}/storage/uploads/{repo.id}/{ticket}"
    verify = {"href": f"{hub.endpoint}/{repo.web_path}.git/info/lfs/objects/verify"}
    if not in_parts:
        return {"upload": {"href": address}, "verify": verify}
    parts = range(1, ceil(blob.size / settings.part_size) + 1)
    header = {"chunk_size": str(settings.part_size), **{str(number): f"{address}/{number}" for number in parts}}
    return {"upload": {"href": f"{address}/complete", "header": header}, "verify": verify}


def _upload(hub: Hub, request: Request) -> Upload:
    upload = hub.uploads.get(request.params["ticket"])
    if upload is None:
        raise HubError(403, "AccessDenied: this upload address is not valid")
    return upload


def _finish(hub: Hub, upload: Upload, chunks: Iterator[bytes]) -> None:
    try:
        hub.blobs.ingest(chunks, upload.blob)
    except DigestMismatch as error:
        raise bad_request(str(error)) from error
    upload.repo.lfs_objects[upload.blob.sha256] = upload.blob.size
    # The address stays valid: a client that lost the answer repeats the request, as it may at a real storage host.


def _counted(hub: Hub, upload: Upload, request: Request) -> Iterator[bytes]:
    for chunk in request.body.chunks():
        hub.count(upload.repo.id, uploaded=len(chunk))
        yield chunk


def _joined(hub: Hub, ticket: str, numbers: list[int]) -> Iterator[bytes]:
    for number in numbers:
        with hub.blobs.part_path(ticket, number).open("rb") as stream:
            yield from read_chunks(stream)


def _refuse_pull_request(request: Request) -> None:
    if request.flag("create_pr"):
        raise bad_request("Pull requests are not supported by this Hub")
